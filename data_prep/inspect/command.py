"""`drivesim data VERB`: look into a clip store, hand it on."""

from collections.abc import Sequence

from data_prep import merge
from data_prep.export import command as export
from data_prep.inspect import cache, query, stats, verify, view
from drivesim.verbs import Verbs, run_verb

VERBS: Verbs = {
    "stats": (stats.main, "a table of what a store holds, and histograms"),
    "view": (view.main, "one clip with its boxes, as contact sheet or video"),
    "query": (query.main, "the clips for which a condition holds"),
    "cache": (cache.main, "frames and latents, made ahead of training"),
    "verify": (verify.main, "whether files and tables are whole and agree"),
    "export": (export.main, "clips as a data set of nuScenes or COCO"),
    "merge": (merge.main, "several stores as one"),
}


def main(argv: Sequence[str]) -> None:
    """Run the verb that `argv` begins with. raises UserError for an unknown one, and whatever the verb raises"""
    run_verb("drivesim data", "store=FOLDER", VERBS, argv)
