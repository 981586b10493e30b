"""From the name of a data set, or from files, to arrays."""
