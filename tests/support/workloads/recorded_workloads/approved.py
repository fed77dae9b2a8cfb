"""Charges, and has a second person approve what can go wrong."""

from recorded_workloads.charging import Charging


class Approved(Charging):
    name = "approved"
    approvals = ("correct", "replace", "resolve")
