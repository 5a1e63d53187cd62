"""LoRA files: added to a backbone they make what diffusers makes with them, and the layers stay plain ones."""

import pytest
import torch
from diffusers import StableDiffusionPipeline
from peft import LoraConfig, inject_adapter_in_model
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from drivesim.errors import UserError
from drivesim.models.backbone import Backbone
from drivesim.models.denoiser import DenoiserConfig
from drivesim.models.text import TextEncoder


def load(folder):
    return StableDiffusionPipeline.from_pretrained(folder, safety_checker=None, requires_safety_checker=False)


def lora_of(folder, out, text=False, told=True):
    """A LoRA of random weights of rank 2, saved by diffusers; `told` whether the file says that it counts twice."""
    pipeline = load(folder)
    torch.manual_seed(1)
    parts, told_of = {}, {}
    wanted = {"unet": ("to_q", "to_v", "conv1"), **({"text_encoder": ("q_proj", "fc1")} if text else {})}
    for name, targets in wanted.items():
        config = LoraConfig(r=2, lora_alpha=4, init_lora_weights=False, target_modules=list(targets))
        model = inject_adapter_in_model(config, getattr(pipeline, name))
        parts[f"{name}_lora_layers"] = get_peft_model_state_dict(model)
        told_of[f"{name}_lora_adapter_metadata"] = {"r": 2, "lora_alpha": 4, "target_modules": list(targets)}
    StableDiffusionPipeline.save_lora_weights(out.parent, weight_name=out.name, **parts, **(told_of if told else {}))
    return out


@pytest.mark.parametrize(("scale", "told"), [(1.0, True), (0.5, True), (1.0, False)])
@torch.no_grad()
def test_what_is_added_to_a_unet_is_what_diffusers_adds(scale, told, backbone, tmp_path):
    file = lora_of(backbone, tmp_path / "style.safetensors", told=told)
    pipeline = load(backbone)
    pipeline.load_lora_weights(tmp_path, weight_name=file.name)
    pipeline.set_adapters(pipeline.get_active_adapters(), [scale])
    plain, unet = (Backbone(backbone).load(DenoiserConfig(), lora, scale).unet for lora in (None, file))
    z = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    asked = torch.tensor([500]), torch.randn(1, 20, 16, generator=torch.Generator().manual_seed(1))
    assert_close(unet(z, *asked).sample, pipeline.unet(z, *asked).sample, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(plain(z, *asked).sample, unet(z, *asked).sample, atol=1e-3)
    assert list(unet.state_dict()) == list(plain.state_dict())


@pytest.mark.parametrize(("told", "factor"), [(True, 2.0), (False, 1.0)])
@torch.no_grad()
def test_what_is_added_to_a_text_encoder_are_its_products(told, factor, backbone, tmp_path):
    file = lora_of(backbone, tmp_path / "style.safetensors", text=True, told=told)
    model = load(backbone).text_encoder
    state = load_file(file)
    for name in (name for name in state if name.startswith("text_encoder.") and "lora_A" in name):
        layer = model.get_submodule(name.removeprefix("text_encoder.").removesuffix(".lora_A.weight"))
        layer.weight += 0.5 * factor * state[name.replace("lora_A", "lora_B")] @ state[name]
    tokens = load(backbone).tokenizer(["a car"], padding="max_length", max_length=20, return_tensors="pt")
    expected = model(tokens.input_ids)[0]
    assert_close(TextEncoder(backbone, file, 0.5)(["a car"]), expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(TextEncoder(backbone)(["a car"]), expected, atol=1e-3)


def test_the_names_and_scales_of_kohya_are_understood(backbone, tmp_path):
    up, down = torch.randn(16, 2), torch.randn(2, 16)
    parts = {"lora_up.weight": up, "lora_down.weight": down, "alpha": torch.tensor(1.0)}
    text = [f"lora_te_text_model_encoder_layers_0_self_attn_{name}_proj" for name in ("q", "out")]
    image = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    state = {f"{name}.{part}": value.clone() for name in (*text, image) for part, value in parts.items()}
    save_file(state, tmp_path / "kohya.safetensors")
    loras = None, tmp_path / "kohya.safetensors"
    plain, unet = (Backbone(backbone).load(DenoiserConfig(), lora).unet for lora in loras)
    layer = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.weight"
    assert_close(unet.state_dict()[layer] - plain.state_dict()[layer], 0.5 * up @ down, rtol=1e-4, atol=1e-5)
    encoders = [TextEncoder(backbone, lora) for lora in loras]
    assert not torch.equal(*(encoder(["a car"]) for encoder in encoders))
    before, after = (encoder._model.encoder.layers[0].self_attn.q_proj.weight for encoder in encoders)
    assert_close(after - before, 0.5 * up @ down, rtol=1e-4, atol=1e-5)


def test_a_file_of_another_model_is_refused(backbone, make_backbone, tmp_path):
    other = make_backbone(tmp_path / "wide", widths=(24, 48))
    file = lora_of(other, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="does not fit this backbone"):
        Backbone(backbone).load(DenoiserConfig(), file)


def test_a_file_that_is_no_lora_is_refused(backbone, tmp_path):
    save_file({"weight": torch.zeros(2)}, tmp_path / "none.safetensors")
    with pytest.raises(UserError, match=r"none.safetensors changes nothing in a U-Net"):
        Backbone(backbone).load(DenoiserConfig(), tmp_path / "none.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"1234")
    with pytest.raises(UserError, match="does not fit this backbone or is damaged"):
        Backbone(backbone).load(DenoiserConfig(), tmp_path / "bad.safetensors")


def test_a_pickle_is_refused(backbone, tmp_path):
    torch.save({}, tmp_path / "style.bin")
    with pytest.raises(UserError, match="pickles are never read"):
        Backbone(backbone).load(DenoiserConfig(), tmp_path / "style.bin")
