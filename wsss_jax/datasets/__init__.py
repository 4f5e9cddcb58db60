"""Data sets: every layout of photographs and labels, their checks, drawn scenes."""
