"""What boxes are called, everywhere. Imports nothing, so that the processes that write stores start fast."""

CLASSES = ("car", "truck", "bus", "pedestrian", "cyclist")
VEHICLES = ("car", "truck", "bus")
