"""The cell of one genotype written again in PyTorch as one would there: a module built for it; for tests and timings.

Modules have the names of the parameters of `space.operations`, so `load` copies them by name. Channels-last where the
caller's maps are. Normalised by the batch in training and in evaluation alike, as candidates are here.
"""

import re

import torch
from torch import nn
from torch.nn import functional


def conv(cin, cout, size=1, dilation=1, groups=1, bias=False):
    return nn.Conv2d(cin, cout, size, 1, dilation * (size // 2), dilation, groups, bias=bias)


def batch_norm(channels):
    return nn.BatchNorm2d(channels, track_running_stats=False)


def zeroed(module):
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


class Conv(nn.Module):
    """Convolution and normalisation, `is_active`: and ReLU."""

    def __init__(self, cin, cout, size=1, dilation=1, is_active=True):
        super().__init__()
        self.kernel, self.norm, self.is_active = conv(cin, cout, size, dilation), batch_norm(cout), is_active

    def forward(self, x):
        y = self.norm(self.kernel(x))
        return functional.relu(y, inplace=True) if self.is_active else y


class Head(nn.Module):
    def __init__(self, channels, num_outputs, size=1):
        super().__init__()
        self.kernel = zeroed(conv(channels, num_outputs, size, bias=True))

    def forward(self, x):
        return self.kernel(x)


class SepConv(nn.Module):
    def __init__(self, channels, size, dilation):
        super().__init__()
        self.depthwise = conv(channels, channels, size, dilation, groups=channels)
        self.pointwise, self.norm = conv(channels, channels), batch_norm(channels)

    def forward(self, x):
        return functional.relu(self.norm(self.pointwise(self.depthwise(x))), inplace=True)


class GlobalAveragePool(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.kernel = conv(channels, channels, bias=True)

    def forward(self, x):
        return functional.relu(self.kernel(x.mean(dim=(2, 3), keepdim=True))).expand_as(x)


def operation(name, channels):
    match = re.fullmatch(r"(sep_)?conv_(\d)x\2(?:_dil(\d+))?", name)
    if match:
        size, dilation = int(match[2]), int(match[3] or 1)
        return SepConv(channels, size, dilation) if match[1] else Conv(channels, channels, size, dilation)
    if name == "global_average_pool":
        return GlobalAveragePool(channels)
    return {"skip": nn.Identity, "max_pool_3x3": lambda: nn.MaxPool2d(3, stride=1, padding=1)}[name]()


class Sum(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.weight_a, self.weight_b = (nn.Parameter(torch.full((channels,), 0.5)) for _ in range(2))

    def forward(self, a, b):
        return self.weight_a.view(1, -1, 1, 1) * a + self.weight_b.view(1, -1, 1, 1) * b


class Concat(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.kernel, self.norm = conv(2 * channels, channels), batch_norm(channels)

    def forward(self, a, b):
        return functional.relu(self.norm(self.kernel(torch.cat([a, b], dim=1))), inplace=True)


class Gate(Concat):
    def forward(self, a, b):
        return torch.lerp(b, a, torch.sigmoid(self.norm(self.kernel(torch.cat([a, b], dim=1)))))


class Max(nn.Module):
    def forward(self, a, b):
        return torch.maximum(a, b)


def sampled(x, offsets):
    """A map [B, C, h, w] at offsets [B, 2, h, w], (x, y) in grid cells, the border repeated."""
    height, width = x.shape[2:]
    scale = offsets.new_tensor([2 / (width - 1), 2 / (height - 1)])
    rows, cols = torch.linspace(-1, 1, height), torch.linspace(-1, 1, width)
    own = torch.stack(torch.meshgrid(rows, cols, indexing="ij")[::-1], dim=-1)
    grid = own + offsets.permute(0, 2, 3, 1) * scale
    return functional.grid_sample(x, grid, padding_mode="border", align_corners=True)


class Warp(nn.Module):
    """The first map at offsets predicted from both, and the second."""

    def __init__(self, channels, max_offset):
        super().__init__()
        self.kernel, self.max_offset = zeroed(conv(2 * channels, 2, 3, bias=True)), max_offset

    def forward(self, a, b):
        offsets = self.max_offset * torch.tanh(self.kernel(torch.cat([a, b], dim=1)))
        return sampled(a, offsets) + b


class LocalAttention(nn.Module):
    """Each pixel of b attends to the window of a around it, the windows by `unfold`."""

    def __init__(self, channels, window, heads):
        super().__init__()
        self.query, self.key = zeroed(conv(channels, channels)), conv(channels, channels)
        self.position = nn.Parameter(torch.zeros(window, window, heads))
        self.window, self.heads = window, heads

    def forward(self, a, b):
        batch, channels, height, width = a.shape
        depth, taps = channels // self.heads, self.window**2

        def windows(x):
            return functional.unfold(x, self.window, padding=self.window // 2)

        query = self.query(b).reshape(batch, self.heads, depth, 1, height * width)
        shape = (batch, self.heads, depth, taps, height * width)
        scores = (query * windows(self.key(a)).view(shape)).sum(dim=2) * depth**-0.5
        scores = scores + self.position.view(taps, self.heads).t().view(1, self.heads, taps, 1)
        outside = windows(a.new_ones(1, 1, height, width)).view(1, 1, taps, -1) == 0
        weights = scores.masked_fill(outside, float("-inf")).softmax(dim=2)
        return (weights.unsqueeze(2) * windows(a).view(shape)).sum(dim=3).view(batch, channels, height, width) + b


class Correlation(nn.Module):
    """Cosines of each pixel of b and those of a in the window around it, by `unfold`, joined with b."""

    def __init__(self, channels, window):
        super().__init__()
        self.kernel, self.norm, self.window = conv(window**2 + channels, channels), batch_norm(channels), window

    def forward(self, a, b):
        batch, channels, height, width = a.shape
        a, unit = (x * torch.rsqrt(x.square().sum(dim=1, keepdim=True) + 1e-3) for x in (a, b))
        windows = functional.unfold(a, self.window, padding=self.window // 2).view(batch, channels, -1, height, width)
        cosines = (unit.unsqueeze(2) * windows).sum(dim=1)
        return functional.relu(self.norm(self.kernel(torch.cat([cosines, b], dim=1))), inplace=True)


def projection(name):
    """The input whose projection an input passes."""
    return name.removeprefix("prev_") if name.startswith("prev_stage") else name


class Layer(nn.Module):
    def __init__(self, layer, channels, settings):
        super().__init__()
        self.inputs = layer["in"]
        self.a, self.b = (None if name == "none" else operation(name, channels) for name in layer["ops"])
        self.agg = {
            "sum": lambda: Sum(channels),
            "concat": lambda: Concat(channels),
            "gate": lambda: Gate(channels),
            "max": Max,
            "warp": lambda: Warp(channels, settings.max_offset),
            "local_attention": lambda: LocalAttention(channels, settings.attention_window, settings.attention_heads),
            "correlation": lambda: Correlation(channels, settings.correlation_window),
        }[layer["agg"]]()

    def forward(self, nodes, zeros):
        maps = [
            zeros if op is None else op(nodes[name]) for op, name in zip((self.a, self.b), self.inputs, strict=True)
        ]
        return self.agg(*maps)


class Cell(nn.Module):
    """The cell of a genotype by name (`genotype.to_dict`), in refine mode; `settings`: `ports.CellSettings`."""

    def __init__(self, genotype, settings):
        super().__init__()
        channels = self.channels = settings.channels
        layers = genotype["layers"]
        read = {name for layer in layers for name, op in zip(layer["in"], layer["ops"], strict=True) if op != "none"}
        self.names = sorted(read & set(genotype["inputs"]))  # `decoder` comes before `prev_state`, which may need it
        built = {*map(projection, self.names), *(["decoder"] if "prev_state" in self.names else [])}
        self.inputs = nn.ModuleDict(
            {name: Conv(settings.input_channels(name), channels, is_active=False) for name in sorted(built)}
        )
        built_layers = {f"layer{index}": Layer(layer, channels, settings) for index, layer in enumerate(layers)}
        self.layers = nn.ModuleDict(built_layers)
        used = {name for layer in layers for name in layer["in"]}
        self.loose = [name for name in self.layers if name not in used]
        self.output, self.head = Conv(channels, channels), Head(channels, settings.num_classes)
        self.motion, self.share, self.max_offset = (
            Head(channels, 3, 3),
            nn.Parameter(torch.zeros(())),
            settings.max_offset,
        )

    def project(self, frame, before):
        """The inputs of a layer by name; at the first frame (`before` None) `prev_*` are the frame's own values."""
        maps = {}
        for name in self.names:
            if name == "prev_state":
                x = before["state"] if before is not None else maps.get("decoder")
                x = self.inputs["decoder"](frame["decoder"]) if x is None else x
            elif name == "image_diff":
                x = torch.zeros_like(frame["image"]) if before is None else frame["image"] - before["image"]
            else:
                source = before if before is not None and name.startswith("prev_") else frame
                x = source[name.removeprefix("prev_")]
                x = x.softmax(dim=1) if name.endswith("logits") else x
            maps[name] = self.inputs[projection(name)](x)
        return maps

    def forward(self, frames):
        """Logits [B, K, h, w] of each of the frames, which are dicts of maps [B, C, h, w]."""
        before, found = None, []
        for frame in frames:
            nodes = self.project(frame, before)
            batch, _, height, width = frame["logits"].shape
            zeros = torch.zeros(batch, self.channels, height, width).contiguous(memory_format=torch.channels_last)
            for name, layer in self.layers.items():
                nodes[name] = layer(nodes, zeros)
            state = self.output(sum(nodes[name] for name in self.loose) / len(self.loose))
            logits = self.end(state, frame, before)
            before = {**frame, "state": state, "logits": logits}
            found.append(logits)
        return found

    def end(self, state, frame, before):
        """The logits of a frame: a mean of its own and of those before, moved, and a correction."""
        logits = frame["logits"]
        if before is not None:
            motion = self.motion(state)
            gate = torch.sigmoid(self.share + motion[:, 2:])
            moved = sampled(before["logits"], self.max_offset * torch.tanh(motion[:, :2]))
            logits = gate * logits + (1 - gate) * moved
        return logits + self.head(state)


def load(cell, params):
    """Copies the parameters of a cell (`cell.gather_params`, as NumPy arrays) into the modules of the same names."""
    _load(cell, {**params["ports"], "layers": params["layers"]})


def _load(module, params):
    for name, value in params.items():
        if name == "norm":
            _load(module.norm, {"weight": value["scale"], "bias": value["bias"]})
        elif isinstance(value, dict):
            _load(getattr(module, name), value)
        else:
            is_of_kernel = name == "bias" and hasattr(module, "kernel")
            target, tensor = getattr(module.kernel if is_of_kernel else module, name), torch.from_numpy(value.copy())
            if isinstance(target, nn.Conv2d):
                target = target.weight
                tensor = tensor.permute(3, 2, 0, 1) if tensor.ndim == 4 else tensor.permute(2, 0, 1).unsqueeze(1)
            assert target.shape == tensor.shape, name
            target.data.copy_(tensor)
