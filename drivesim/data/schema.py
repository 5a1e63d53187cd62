"""What a clip store consists of: H.264 clips plus Parquet tables, readable with pandas or pyarrow alone.

    store/
      store.json             {"schema": 1, "source": ..., "config": ...}; written last, so its presence means "whole"
      index.parquet          one row a clip   (INDEX)
      frames.parquet         one row a frame  (FRAMES)
      boxes.parquet          one row a box    (BOXES)
      clips/<clip>.mp4       H.264 yuv420p, constant frame rate, short GOPs
      parts/<clip>.{index,frames,boxes}.parquet   what one clip adds to the tables; merged at the end

docs/clip_store.md explains it to users. Imports no torch, so that the processes that write stores start fast.
"""

import pyarrow as pa

SCHEMA = 1
SPLITS = ("train", "val", "test")

# fmt: off
INDEX = pa.schema([
    ("clip", pa.string()),  # name, also of the file clips/<clip>.mp4
    ("route", pa.string()),  # splits never cut a route
    ("split", pa.string()),  # train, val or test
    ("frames", pa.int32()),
    ("fps", pa.float64()),
    ("height", pa.int32()), ("width", pa.int32()),  # pixels
    ("source", pa.string()),  # town, or the original file
    ("licence", pa.string()),
    ("night", pa.float32()),  # 0 day .. 1 night, NaN unknown
    ("crowdedness", pa.float32()),  # mean number of vehicles in view, NaN unknown
    ("speed_mps", pa.float32()),  # mean ego speed, NaN unknown
    ("has_boxes", pa.bool_()),
    ("sha256", pa.string()),  # of the mp4 file
])
FRAMES = pa.schema([
    ("clip", pa.string()), ("frame", pa.int32()), ("time_s", pa.float64()),
    ("x_m", pa.float64()), ("y_m", pa.float64()), ("z_m", pa.float64()),  # camera, world: x east, y north, z up
    ("qw", pa.float64()), ("qx", pa.float64()), ("qy", pa.float64()), ("qz", pa.float64()),  # camera-to-world rotation
    ("fx", pa.float64()), ("fy", pa.float64()), ("cx", pa.float64()), ("cy", pa.float64()),  # pixels of the stored size
    ("speed_mps", pa.float32()), ("night", pa.float32()), ("vehicles", pa.float32()),  # NaN where unknown
])
BOXES = pa.schema([
    ("clip", pa.string()), ("frame", pa.int32()), ("track", pa.int32()), ("class", pa.string()),
    ("x1", pa.float32()), ("y1", pa.float32()), ("x2", pa.float32()), ("y2", pa.float32()),  # fractions, in [0, 1]
    ("visibility", pa.float32()),  # visible share of the box's own pixels, 0..1; NaN unknown
    # 3D box in the camera frame (x right, y down, z forward), metres and radians; NaN where unknown
    ("x_m", pa.float32()), ("y_m", pa.float32()), ("z_m", pa.float32()),  # centre
    ("length_m", pa.float32()), ("width_m", pa.float32()), ("height_m", pa.float32()),
    ("yaw", pa.float32()),  # about the camera's y axis; 0: the object's length lies along the camera's z axis
])
# fmt: on
TABLES = {"index": INDEX, "frames": FRAMES, "boxes": BOXES}
