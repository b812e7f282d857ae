"""The static networks written again in PyTorch, with the published names of their weights; for tests and timings."""

import math

import torch
from torch import nn
from torch.nn import functional

MOBILENET_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
LITE_STAGES = (
    # kernel, stride, expansion, input and output channels, blocks: the strings "r2_k5_s22_e6_i24_o40" of the original
    (3, 1, 1, 32, 16, 1),
    (3, 2, 6, 16, 24, 2),
    (5, 2, 6, 24, 40, 2),
    (3, 2, 6, 40, 80, 3),
    (5, 1, 6, 80, 112, 3),
    (5, 2, 6, 112, 192, 4),
    (3, 1, 6, 192, 320, 1),
)
LITE_SCALES = {"efficientnet_lite0": (1.0, 1.0), "efficientnet_lite1": (1.0, 1.1), "efficientnet_lite2": (1.1, 1.2)}
RESNET_BLOCKS = {"resnet18": (2, 2, 2, 2), "resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3)}


def conv(cin, cout, size=1, stride=1, dilation=1, groups=1, bias=False):
    return nn.Conv2d(cin, cout, size, stride, dilation * (size // 2), dilation, groups, bias=bias)


def conv_norm(cin, cout, size=1, stride=1, dilation=1, groups=1, activation=nn.ReLU6):
    layers = [conv(cin, cout, size, stride, dilation, groups), nn.BatchNorm2d(cout)]
    return nn.Sequential(*layers, *([activation()] if activation else []))


class RefineNetBlock(nn.Module):
    """The authors' inverted residual: `output`, three pairs of convolution and normalisation."""

    def __init__(self, cin, cout, expansion, stride):
        super().__init__()
        inner = cin * expansion
        self.output = nn.Sequential(
            conv_norm(cin, inner),
            conv_norm(inner, inner, 3, stride, groups=inner),
            conv_norm(inner, cout, activation=None),
        )
        self.is_residual = stride == 1 and cin == cout

    def forward(self, x):
        return x + self.output(x) if self.is_residual else self.output(x)


class ChainedPooling(nn.Module):
    def __init__(self, channels):
        super().__init__()
        for i in range(1, 5):
            setattr(self, f"{i}_outvar_dimred", conv(channels, channels))

    def forward(self, x):
        top = x
        for i in range(1, 5):
            top = getattr(self, f"{i}_outvar_dimred")(functional.max_pool2d(top, 5, 1, 2))
            x = x + top
        return x


def raised(x, other):
    return functional.interpolate(x, other.shape[2:], mode="bilinear", align_corners=True)


class MobileNetRefineNet(nn.Module):
    """Light-weight RefineNet on MobileNetV2; gives its maps and the logits."""

    def __init__(self, num_classes=11, channels=256):
        super().__init__()
        self.layer1 = conv_norm(3, 32, 3, 2)
        cin = 32
        for i, (expansion, cout, repeats, stride) in enumerate(MOBILENET_STAGES, start=2):
            blocks = []
            for block in range(repeats):
                blocks.append(RefineNetBlock(cin, cout, expansion, stride if block == 0 else 1))
                cin = cout
            setattr(self, f"layer{i}", nn.Sequential(*blocks))
        for i in range(8, 2, -1):
            setattr(self, f"conv{i}", conv(MOBILENET_STAGES[i - 2][1], channels))
        for i in range(4, 0, -1):
            setattr(self, f"crp{i}", nn.Sequential(ChainedPooling(channels)))
        for i in range(4, 1, -1):
            setattr(self, f"conv_adapt{i}", conv(channels, channels))
        self.segm = conv(channels, num_classes, 3, bias=True)

    def forward(self, x):
        x = self.layer1(x)
        maps = {}
        for i in range(2, 9):
            x = maps[i] = getattr(self, f"layer{i}")(x)
        lateral = {i: getattr(self, f"conv{i}")(maps[i]) for i in range(3, 9)}
        y = self.crp4(functional.relu6(lateral[8] + lateral[7]))
        y = raised(self.conv_adapt4(y), lateral[6])
        y = self.crp3(functional.relu6(lateral[5] + lateral[6] + y))
        y = raised(self.conv_adapt3(y), lateral[4])
        y = self.crp2(functional.relu6(lateral[4] + y))
        y = raised(self.conv_adapt2(y), lateral[3])
        y = self.crp1(functional.relu6(lateral[3] + y))
        stages = {"stage1": maps[3], "stage2": maps[4], "stage3": maps[6], "stage4": maps[8]}
        return {**stages, "decoder": y, "logits": self.segm(y)}


class ClassifierBlock(nn.Module):
    """Torchvision's inverted residual: `conv`, without expansion where the factor is 1."""

    def __init__(self, cin, cout, expansion, stride, dilation):
        super().__init__()
        inner = cin * expansion
        first = [conv_norm(cin, inner)] if expansion != 1 else []
        depthwise = conv_norm(inner, inner, 3, stride, dilation, groups=inner)
        self.conv = nn.Sequential(*first, depthwise, conv(inner, cout), nn.BatchNorm2d(cout))
        self.is_residual = stride == 1 and cin == cout

    def forward(self, x):
        return x + self.conv(x) if self.is_residual else self.conv(x)


class MobileNetClassifier(nn.Module):
    """Torchvision's MobileNetV2; gives the maps at strides 4, 8, 16 and 32 (or 16)."""

    def __init__(self, output_stride=32):
        super().__init__()
        parts, cin, self.ends, reached, dilation = [conv_norm(3, 32, 3, 2)], 32, [], 2, 1
        for expansion, cout, repeats, stride in MOBILENET_STAGES:
            is_dilated = stride == 2 and reached == output_stride
            reached *= 1 if is_dilated else stride
            for block in range(repeats):
                now = 2 if dilation == 2 or (is_dilated and block) else 1
                step = stride if block == 0 and not is_dilated else 1
                parts.append(ClassifierBlock(cin, cout, expansion, step, now))
                cin = cout
            dilation = 2 if is_dilated else dilation
            self.ends.append(len(parts) - 1)
        self.features = nn.Sequential(*parts, conv_norm(320, 1280))
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, 1000))

    def forward(self, x):
        maps = []
        for part in self.features[:-1]:
            x = part(x)
            maps.append(x)
        return {f"stage{i}": maps[self.ends[end]] for i, end in enumerate((1, 2, 4, 6), start=1)}


class SameConv(nn.Conv2d):
    """A convolution padded as TensorFlow's `SAME`, of an odd number of pixels one more below and at the right."""

    def forward(self, x):
        pads = []
        for length, size, stride in zip(x.shape[:1:-1], self.kernel_size[::-1], self.stride[::-1], strict=True):
            total = max((math.ceil(length / stride) - 1) * stride + size - length, 0)
            pads += [total // 2, total - total // 2]
        return functional.conv2d(functional.pad(x, pads), self.weight, None, self.stride, 0, 1, self.groups)


def lite_norm(channels):
    return nn.BatchNorm2d(channels, eps=1e-3)


class LiteBlock(nn.Module):
    """The published inverted residual with its published names."""

    def __init__(self, cin, cout, size, stride, expansion):
        super().__init__()
        inner = cin * expansion
        if expansion != 1:
            self._expand_conv, self._bn0 = SameConv(cin, inner, 1, bias=False), lite_norm(inner)
        self._depthwise_conv = SameConv(inner, inner, size, stride, groups=inner, bias=False)
        self._bn1 = lite_norm(inner)
        self._project_conv, self._bn2 = SameConv(inner, cout, 1, bias=False), lite_norm(cout)
        self.has_skip = stride == 1 and cin == cout

    def forward(self, x):
        y = functional.relu6(self._bn0(self._expand_conv(x))) if hasattr(self, "_expand_conv") else x
        y = functional.relu6(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        return x + y if self.has_skip else y


class EfficientNetLite(nn.Module):
    """EfficientNet-Lite with its head; gives the maps at strides 4, 8, 16 and 32 of frames 0..255."""

    def __init__(self, variant):
        super().__init__()
        width, depth = LITE_SCALES[variant]

        def filters(channels):
            rounded = max(8, int(channels * width + 4) // 8 * 8)
            return rounded + 8 if rounded < 0.9 * channels * width else rounded

        self._conv_stem, self._bn0 = SameConv(3, 32, 3, 2, bias=False), lite_norm(32)
        blocks, self.ends, cout = [], [], 32
        for index, (size, stride, expansion, cin, wanted, repeats) in enumerate(LITE_STAGES):
            cin, cout = 32 if index == 0 else filters(cin), filters(wanted)
            for block in range(repeats if index in (0, 6) else math.ceil(depth * repeats)):
                blocks.append(LiteBlock(cout if block else cin, cout, size, 1 if block else stride, expansion))
            self.ends.append(len(blocks) - 1)
        self._blocks = nn.ModuleList(blocks)
        self._conv_head, self._bn1 = SameConv(cout, 1280, 1, bias=False), lite_norm(1280)
        self._fc = nn.Linear(1280, 1000)

    def forward(self, x):
        x = functional.relu6(self._bn0(self._conv_stem((x - 127) / 128)))
        maps = []
        for block in self._blocks:
            x = block(x)
            maps.append(x)
        return {f"stage{i}": maps[self.ends[end]] for i, end in enumerate((1, 2, 4, 6), start=1)}


class ResNetBlock(nn.Module):
    def __init__(self, cin, inner, *, is_bottleneck, stride=1, dilation=1, stride_in_1x1=False):
        super().__init__()
        cout = 4 * inner if is_bottleneck else inner
        self.is_bottleneck = is_bottleneck
        if is_bottleneck:
            self.conv1 = conv(cin, inner, 1, stride if stride_in_1x1 else 1)
            self.conv2 = conv(inner, inner, 3, 1 if stride_in_1x1 else stride, dilation)
            self.conv3 = conv(inner, cout)
            self.bn3 = nn.BatchNorm2d(cout)
        else:
            self.conv1 = conv(cin, inner, 3, stride, dilation)
            self.conv2 = conv(inner, inner, 3)
        self.bn1, self.bn2 = nn.BatchNorm2d(inner), nn.BatchNorm2d(inner)
        self.downsample = conv_norm(cin, cout, 1, stride, activation=None) if stride > 1 or cin != cout else None

    def forward(self, x):
        y = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        if self.is_bottleneck:
            y = self.bn3(self.conv3(functional.relu(y)))
        return functional.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    """Torchvision's ResNet; gives the maps at strides 4, 8, 16 and 32 (or 16)."""

    def __init__(self, variant, *, stride_in_1x1=False, output_stride=32, has_classifier=True):
        super().__init__()
        self.conv1, self.bn1 = conv(3, 64, 7, 2), nn.BatchNorm2d(64)
        cin, is_bottleneck = 64, variant != "resnet18"
        for stage, repeats in enumerate(RESNET_BLOCKS[variant], start=1):
            is_dilated = stage == 4 and output_stride == 16
            inner, blocks = 32 * 2**stage, []
            for block in range(repeats):
                stride = 2 if block == 0 and stage > 1 and not is_dilated else 1
                blocks.append(
                    ResNetBlock(
                        cin, inner, is_bottleneck=is_bottleneck, stride=stride,
                        dilation=2 if is_dilated and block else 1, stride_in_1x1=stride_in_1x1,
                    )
                )  # fmt: skip
                cin = 4 * inner if is_bottleneck else inner
            setattr(self, f"layer{stage}", nn.Sequential(*blocks))
        if has_classifier:
            self.fc = nn.Linear(cin, 1000)

    def forward(self, x):
        x = functional.max_pool2d(functional.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        maps = {}
        for i in range(1, 5):
            x = maps[f"stage{i}"] = getattr(self, f"layer{i}")(x)
        return maps


class ResNetRefineNet(ResNet):
    """Light-weight RefineNet on ResNet-50 or 101; gives its maps and the logits."""

    def __init__(self, variant="resnet50", num_classes=11):
        super().__init__(variant, has_classifier=False)
        for group, cin in enumerate((2048, 1024, 512, 256), start=1):
            width = 512 if group == 1 else 256
            setattr(self, f"p_ims1d2_outl{group}_dimred", conv(cin, width))
            if group > 1:
                setattr(self, f"adapt_stage{group}_b2_joint_varout_dimred", conv(width, width))
            setattr(self, f"mflow_conv_g{group}_pool", nn.Sequential(ChainedPooling(width)))
            if group < 4:
                setattr(self, f"mflow_conv_g{group}_b3_joint_varout_dimred", conv(width, 256))
        self.dropout = nn.Dropout(0.5)
        self.clf_conv = conv(256, num_classes, 3, bias=True)

    def forward(self, x):
        maps = super().forward(x)
        y = None
        for group in (1, 2, 3, 4):
            x = maps[f"stage{5 - group}"]
            x = getattr(self, f"p_ims1d2_outl{group}_dimred")(self.dropout(x) if group < 3 else x)
            if y is not None:
                x = getattr(self, f"adapt_stage{group}_b2_joint_varout_dimred")(x)
                x = x + raised(y, x)
            y = getattr(self, f"mflow_conv_g{group}_pool")(functional.relu(x))
            if group < 4:
                y = getattr(self, f"mflow_conv_g{group}_b3_joint_varout_dimred")(y)
        return {**maps, "decoder": y, "logits": self.clf_conv(y)}


def randomise(module, seed=0):
    """Draws kernels, and statistics that are neither 0 nor 1; the decoder is unnormalised and gets small kernels."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, part in module.named_modules():
            if isinstance(part, nn.Conv2d):
                is_decoder = (
                    name.startswith(("conv", "crp", "segm", "p_ims", "adapt", "mflow", "clf")) and name != "conv1"
                )
                gain = 1 / 3 if is_decoder else 2
                fan_in = part.weight[0].numel()
                part.weight.copy_(torch.randn(part.weight.shape, generator=generator) * (gain / fan_in) ** 0.5)
            if isinstance(part, nn.BatchNorm2d):
                size = part.weight.shape
                part.weight.copy_(torch.rand(size, generator=generator) + 0.5)
                part.bias.copy_(torch.randn(size, generator=generator) * 0.3)
                part.running_mean.copy_(torch.randn(size, generator=generator) * 0.3)
                part.running_var.copy_(torch.rand(size, generator=generator) * 2 + 0.5)
    return module
