"""What is trained, what is made with it, and which two are compared, with the paper's own figures."""

from dataclasses import dataclass

from drivesim.bundle import STAGES

VIDEO = ("autoencoder", "image", "keyframes", "interpolate")  # the stages of the video model


@dataclass(frozen=True)
class Run:
    """A model that is trained.

    name      of its folder, and of the choice in conf/ablation that it is trained with
    trains    its own stages; all others are those of the first run
    """

    name: str
    trains: tuple[str, ...]


RUNS = (
    Run("paper", STAGES),
    Run("pixels", VIDEO),
    Run("end_to_end", VIDEO[1:]),
    Run("attention_only", VIDEO[2:]),
    Run("none", VIDEO[2:]),
    Run("image_discriminator", ("decoder",)),
)


@dataclass(frozen=True)
class Made:
    """A set of videos.

    kind     drive: continuations of a start frame; decoder: true video by way of the latents; upsampler: full
             resolution from the true low one
    run      by which model;  how  the way it is used, a name in judge.MAKERS
    sampler  the choice in conf/ablation whose sampler is used; empty: that of the run
    """

    name: str
    kind: str
    run: str
    how: str
    sampler: str = ""


MADE = (
    Made("ours", "drive", "paper", "continued"),
    Made("pixels", "drive", "pixels", "continued"),
    Made("end_to_end", "drive", "end_to_end", "continued"),
    Made("attention_only", "drive", "attention_only", "continued"),
    Made("context_guidance", "drive", "paper", "continued", "context_guidance"),
    Made("alpha_one", "drive", "paper", "frame_by_frame"),
    Made("additions", "drive", "none", "continued"),
    Made("decoder_untuned", "decoder", "paper", "untuned"),
    Made("decoder_tuned", "decoder", "paper", "tuned"),
    Made("decoder_both_critics", "decoder", "image_discriminator", "tuned"),
    Made("upsampler_image", "upsampler", "paper", "by_picture"),
    Made("upsampler_temporal", "upsampler", "paper", "by_video"),
)


@dataclass(frozen=True)
class Comparison:
    """The distance of one set over that of another.

    fvd, fid  the paper's two values each; none where it has none
    why       what is known to make ours differ from the paper's
    """

    over: str
    under: str
    fvd: tuple[float, float] | None
    fid: tuple[float, float] | None
    why: str

    @property
    def name(self) -> str:
        return f"{self.over} / {self.under}"

    def paper(self, kind: str) -> float | None:
        """The paper's ratio of `kind`, fvd or fid."""
        pair = {"fvd": self.fvd, "fid": self.fid}[kind]
        return None if pair is None else pair[0] / pair[1]


# Blattmann et al. 2023: the ablation of the smaller model, of the decoder and its discriminators, of the upsampler.
COMPARISONS = (
    Comparison("ours", "pixels", (534.17, 639.56), (48.26, 59.70), "no autoencoder to train, nothing lost, a grid "
               "four times as large: fewer steps in the same time"),
    Comparison("ours", "end_to_end", (534.17, 1155.10), (48.26, 71.26), "no image training before: all time goes into "
               "video; needs as much of it as images and video together"),
    Comparison("ours", "attention_only", (534.17, 704.41), (48.26, 50.01), "the paper gives both the same number of "
               "trained weights, here attention has fewer; cheaper steps in the same time"),
    Comparison("context_guidance", "ours", (508.82, 534.17), (54.16, 48.26), "scale 1.5, the paper's is not known"),
    Comparison("ours", "alpha_one", None, (48.26, 47.00), "alpha_one makes single frames that know no start frame, "
               "ours continue one: what the start frame gives is in the ratio"),
    Comparison("decoder_tuned", "decoder_untuned", (32.94, 390.88), (9.17, 7.61), "aligned neighbours in place of 3D "
               "convolutions, which learn nothing in minutes; they gain 0.2 dB in the town (docs/method.md)"),
    Comparison("decoder_tuned", "decoder_both_critics", (32.94, 51.01), (9.17, 9.04), "both discriminators weigh "
               "alike; the paper's weights are not known"),
    Comparison("upsampler_temporal", "upsampler_image", (45.39, 165.98), (19.85, 19.71), "only what the closed form "
               "leaves is drawn, to which a network of minutes adds nothing yet (docs/method.md), so little flickers"),
    Comparison("additions", "ours", None, None, "carried frames and the temporal head, which the paper does not have"),
)  # fmt: skip
