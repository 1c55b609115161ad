"""Systems compared: planned, trained and measured run by run, told as findings and as a report."""
