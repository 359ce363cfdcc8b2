"""Forward passes of the VQVAE, the UNet and the classifier from a state dict alone.

Written from the description of the architectures with nothing but elementary operations and attention as explicit
matrices, so that they share no code with the classes that `test_networks` beside this file compares with them.
"""

import math

import torch


def conv(state, name, x, stride=1, padding=0):
    return torch.conv2d(x, state[f"{name}.weight"], state.get(f"{name}.bias"), stride, padding)


def silu(x):
    return x / (1 + torch.exp(-x))


def group_norm(state, name, x, groups):
    b, c = x.shape[:2]
    flat = x.reshape(b, groups, -1)
    flat = (flat - flat.mean(-1, keepdim=True)) / (flat.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    shape = (1, c, *[1] * (x.dim() - 2))
    return flat.reshape(x.shape) * state[f"{name}.weight"].reshape(shape) + state[f"{name}.bias"].reshape(shape)


def linear(state, name, x):
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def attention(state, name, x, heads):
    b, c, h, w = x.shape
    tokens = x.reshape(b, c, h * w).transpose(1, 2)
    q, k, v = (tokens @ state[f"{name}.in_proj_weight"].T + state[f"{name}.in_proj_bias"]).chunk(3, dim=-1)
    out = torch.zeros_like(tokens)
    d = c // heads
    for i in range(heads):
        part = slice(i * d, (i + 1) * d)
        weights = torch.softmax(q[..., part] @ k[..., part].transpose(1, 2) / math.sqrt(d), dim=-1)
        out[..., part] = weights @ v[..., part]
    return linear(state, f"{name}.out_proj", out).transpose(1, 2).reshape(b, c, h, w)


def resnet(state, block, i, x, t_emb, groups):
    h = group_norm(state, f"{block}.resnet_conv_first.{i}.0", x, groups)
    h = conv(state, f"{block}.resnet_conv_first.{i}.2", silu(h), padding=1)
    if t_emb is not None:
        h = h + linear(state, f"{block}.t_emb_layers.{i}.1", silu(t_emb))[:, :, None, None]
    h = group_norm(state, f"{block}.resnet_conv_second.{i}.0", h, groups)
    h = conv(state, f"{block}.resnet_conv_second.{i}.2", silu(h), padding=1)
    return h + conv(state, f"{block}.residual_input_conv.{i}", x)


def attend(state, block, i, x, groups, heads):
    normed = group_norm(state, f"{block}.attention_norms.{i}", x, groups)
    return x + attention(state, f"{block}.attentions.{i}", normed, heads)


def up_sample(state, name, x):
    return torch.conv_transpose2d(x, state[f"{name}.weight"], state[f"{name}.bias"], 2, 1)


def unet(state, x, t, cluster, groups=32, heads=16):
    width = state["t_proj.0.weight"].shape[0]
    rate = torch.tensor([10000 ** (-i / (width // 2)) for i in range(width // 2)])
    angle = t[:, None].float() * rate
    t_emb = torch.cat([torch.sin(angle), torch.cos(angle)], dim=1)
    t_emb = linear(state, "t_proj.2", silu(linear(state, "t_proj.0", t_emb)))
    if cluster is not None:
        t_emb = t_emb + state["class_emb.weight"][cluster]

    h = conv(state, "conv_in", x, padding=1)
    skips = []
    for level in range(3):
        skips.append(h)
        for i in range(2):
            h = resnet(state, f"downs.{level}", i, h, t_emb, groups)
            h = attend(state, f"downs.{level}", i, h, groups, heads)
        if level < 2:
            h = conv(state, f"downs.{level}.down_sample_conv", h, 2, 1)
    h = resnet(state, "mids.0", 0, h, t_emb, groups)
    for i in range(2):
        h = attend(state, "mids.0", i, h, groups, heads)
        h = resnet(state, "mids.0", i + 1, h, t_emb, groups)
    for level in range(3):
        if level > 0:
            h = up_sample(state, f"ups.{level}.up_sample_conv", h)
        h = torch.cat([h, skips.pop()], dim=1)
        for i in range(2):
            h = resnet(state, f"ups.{level}", i, h, t_emb, groups)
            h = attend(state, f"ups.{level}", i, h, groups, heads)
    return conv(state, "conv_out", silu(group_norm(state, "norm_out", h, groups)), padding=1)


def vqvae_mid(state, name, h, groups, heads):
    h = resnet(state, name, 0, h, None, groups)
    h = attend(state, name, 0, h, groups, heads)
    return resnet(state, name, 1, h, None, groups)


def vqvae_encode(state, x, groups=32, heads=16):
    h = conv(state, "encoder_conv_in", x, padding=1)
    for level in range(2):
        h = resnet(state, f"encoder_layers.{level}", 0, h, None, groups)
        h = conv(state, f"encoder_layers.{level}.down_sample_conv", h, 2, 1)
    h = vqvae_mid(state, "encoder_mids.0", h, groups, heads)
    h = conv(state, "encoder_conv_out", silu(group_norm(state, "encoder_norm_out", h, groups)), padding=1)
    h = conv(state, "pre_quant_conv", h)
    distance = (h[:, None] - state["embedding.weight"][None, :, :, None, None]).square().sum(2)  # (B, entries, h, w)
    return state["embedding.weight"][distance.argmin(1)].permute(0, 3, 1, 2), h


def vqvae_decode(state, z, groups=32, heads=16):
    h = conv(state, "decoder_conv_in", conv(state, "post_quant_conv", z), padding=1)
    h = vqvae_mid(state, "decoder_mids.0", h, groups, heads)
    for level in range(2):
        h = up_sample(state, f"decoder_layers.{level}.up_sample_conv", h)
        h = resnet(state, f"decoder_layers.{level}", 0, h, None, groups)
    return conv(state, "decoder_conv_out", silu(group_norm(state, "decoder_norm_out", h, groups)), padding=1)


def classifier(state, z):
    def leaky(x):
        return torch.where(x > 0, x, 0.1 * x)

    def batch_norm(name, x):
        mean, var, weight, bias = (
            state[f"{name}.{key}"][:, None, None] for key in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (var + 1e-5).sqrt() * weight + bias

    h = leaky(batch_norm("classifier.bnor1", conv(state, "classifier.conv1", z, 2, 1)))
    h = leaky(batch_norm("classifier.bnor2", conv(state, "classifier.conv2", h, 2, 1)))
    h = leaky(conv(state, "classifier.conv3", h, 2, 1))
    return leaky(conv(state, "classifier.conv4", h))
