"""What a clip store consists of: H.264 clips plus Parquet tables, readable with pandas or pyarrow alone.

    store/
      store.json             {"schema": 2, "source": ..., "config": ...}; written last, so its presence means "whole"
      index.parquet          one row a clip   (INDEX)
      frames.parquet         one row a frame  (FRAMES)
      boxes.parquet          one row a box    (BOXES)
      maps.parquet           one row a layer of a clip's road map (MAPS)
      shards/<split>-00000.tar   the clips as <clip>.mp4, H.264 yuv420p, constant frame rate, short GOPs, and
                                 <clip>.json, its index row
      parts/<clip>.{index,frames,boxes,maps}.parquet   what one clip adds to the tables; merged at the end
      clips/<clip>.mp4       while a preparation runs: clips that are in no shard yet

docs/clip_store.md explains it to users. Imports no torch, so that the processes that write stores start fast.
"""

import pyarrow as pa

SCHEMA = 2
SPLITS = ("train", "val", "test")
WEATHERS = ("clear", "cloudy", "rain", "snow", "fog")  # trained models know them by their place here
MAP_LAYERS = ("drivable_area", "ped_crossing", "walkway", "stop_line", "carpark_area", "road_divider", "lane_divider")

# fmt: off
INDEX = pa.schema([
    ("clip", pa.string()),  # name
    ("route", pa.string()),  # splits never cut a route
    ("split", pa.string()),  # train, val or test
    ("frames", pa.int32()),
    ("fps", pa.float64()),
    ("start_s", pa.float64()),  # of the first frame, seconds into the recording of the route; NaN unknown
    ("height", pa.int32()), ("width", pa.int32()),  # pixels
    ("camera", pa.string()),  # channel, CAM_FRONT say; empty where there is one camera only
    ("source", pa.string()),  # town, or the original file
    ("licence", pa.string()),
    ("night", pa.float32()),  # 0 day .. 1 night, NaN unknown
    ("weather", pa.string()),  # one of WEATHERS, empty where unknown
    ("caption", pa.string()),  # what the clip shows, in words; empty where nobody says
    ("synthetic", pa.bool_()),  # made by a generative model
    ("provenance", pa.string()),  # JSON: what model made it, from which seed and layout; empty where none did
    # Whether a detector finds the boxes (docs/labelled_export.md): share found, NaN where nobody looked; and whether
    # that was enough in every second of the clip, true where nobody looked.
    ("label_recall", pa.float32()), ("label_ok", pa.bool_()),
    ("crowdedness", pa.float32()),  # mean number of vehicles in view, NaN unknown
    ("speed_mps", pa.float32()),  # mean ego speed, NaN unknown
    ("has_boxes", pa.bool_()),
    ("sha256", pa.string()),  # of the mp4 file
    ("shard", pa.string()),  # the tar file that holds it, relative to the store
    ("shard_at", pa.int64()), ("bytes", pa.int64()),  # where its data begin in the shard, and how long it is
    # The clip's rows in the other tables: `frames` of them from row frames_at on, `boxes` of them from boxes_at on.
    ("frames_at", pa.int64()), ("boxes_at", pa.int64()), ("boxes", pa.int32()),
])
FRAMES = pa.schema([
    ("clip", pa.string()), ("frame", pa.int32()), ("time_s", pa.float64()),
    ("x_m", pa.float64()), ("y_m", pa.float64()), ("z_m", pa.float64()),  # camera, world: x east, y north, z up
    ("qw", pa.float64()), ("qx", pa.float64()), ("qy", pa.float64()), ("qz", pa.float64()),  # camera-to-world rotation
    ("fx", pa.float64()), ("fy", pa.float64()), ("cx", pa.float64()), ("cy", pa.float64()),  # pixels of the stored size
    ("speed_mps", pa.float32()), ("night", pa.float32()), ("vehicles", pa.float32()),  # NaN where unknown
    ("steering_rad", pa.float32()),  # of the steering wheel, positive to the left; NaN where unknown
    ("label_recall", pa.float32()), ("label_ok", pa.bool_()),  # as in the index, of the second around the frame
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
MAPS = pa.schema([
    ("clip", pa.string()), ("layer", pa.string()),  # one of MAP_LAYERS
    ("x_m", pa.float64()), ("y_m", pa.float64()),  # world position of the picture's lower left corner; up is +y
    ("metres_per_pixel", pa.float64()),
    ("png", pa.binary()),  # 8 bit grey, 255 where the layer is
])
# fmt: on
# Columns that older stores lack, and what they read as.
OPTIONAL = {"caption": "", "synthetic": False, "provenance": "", "label_recall": float("nan"), "label_ok": True}
TABLES = {"index": INDEX, "frames": FRAMES, "boxes": BOXES, "maps": MAPS}
