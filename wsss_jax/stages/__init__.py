"""Stages: functions that read stores and write stores."""
