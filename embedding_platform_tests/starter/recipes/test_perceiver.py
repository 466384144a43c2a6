import torch
from transformers import PerceiverForMultimodalAutoencoding

from embedding_platform.starter.recipes import perceiver


def test_cheap_latents_are_those_of_the_model() -> None:
    torch.manual_seed(0)
    model = PerceiverForMultimodalAutoencoding(perceiver._config()).eval()
    model.perceiver.decoder = None
    for name, parameter in model.named_parameters():
        if "layernorm" in name:
            parameter.data += 0.1 * torch.randn_like(parameter)
    pixels, sound = torch.randn(2, 16, 3, 64, 64), 0.3 * torch.randn(2, 30_720)
    inputs = {"image": pixels, "audio": sound[..., None], "label": torch.zeros(2, model.config.num_labels)}
    with torch.inference_mode():
        expected = model.perceiver(inputs=inputs).last_hidden_state
        assert torch.allclose(perceiver._latents(model, pixels, sound), expected, atol=1e-4)
