"""Where a run is: folders, clock, machine, first cell, notebook."""
