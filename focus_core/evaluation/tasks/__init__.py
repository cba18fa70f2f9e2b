"""Documents with questions and known answers, at any length: one file for each task."""
