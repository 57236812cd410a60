"""The data set: found, described, checked, and its images kept decoded."""
