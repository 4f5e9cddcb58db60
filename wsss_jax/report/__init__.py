"""The report: one self-contained page. ``write_page`` writes it, the rest is what it shows."""

from wsss_jax.report.content import Gain, Picture, Report, Rule, StageScore
from wsss_jax.report.page import write_page

__all__ = ["Gain", "Picture", "Report", "Rule", "StageScore", "write_page"]
