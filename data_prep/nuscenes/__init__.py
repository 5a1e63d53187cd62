"""nuScenes, and other data in its format, as a source of `drivesim prepare`."""
