"""Small convolutional networks of the kinds that people detect and classify with, random and in eval mode."""

from __future__ import annotations

import torch
from torch import nn


class Conv(nn.Module):
    """Convolution, batch norm, activation: the block that YOLOv5-style networks are made of."""

    def __init__(self, inputs, outputs, kernel=1, stride=1, groups=1, activation=None):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=1e-3)
        self.act = activation or nn.SiLU(inplace=True)

    def forward(self, x):
        return self.act(self.bn(self.conv(x)))


class Bottleneck(nn.Module):
    def __init__(self, size, shortcut=True):
        super().__init__()
        self.cv1, self.cv2, self.add = Conv(size, size), Conv(size, size, 3), shortcut

    def forward(self, x):
        result = self.cv2(self.cv1(x))
        return x + result if self.add else result


class C3(nn.Module):
    def __init__(self, inputs, outputs, shortcut=True):
        super().__init__()
        half = outputs // 2
        self.cv1, self.cv2, self.cv3 = Conv(inputs, half), Conv(inputs, half), Conv(outputs, outputs)
        self.m = nn.Sequential(Bottleneck(half, shortcut), Bottleneck(half, shortcut))

    def forward(self, x):
        return self.cv3(torch.cat((self.m(self.cv1(x)), self.cv2(x)), 1))


class SPPF(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.cv1, self.cv2 = Conv(inputs, inputs // 2), Conv(inputs * 2, outputs)
        self.m = nn.MaxPool2d(5, 1, 2)

    def forward(self, x):
        x = self.cv1(x)
        first = self.m(x)
        second = self.m(first)
        return self.cv2(torch.cat((x, first, second, self.m(second)), 1))


class Detector(nn.Module):
    """A YOLOv5 in small: backbone, a neck with upsampling and skips, a head for each of two scales."""

    def __init__(self, classes=3, anchors=2):
        super().__init__()
        self.numbers, self.anchors = 5 + classes, anchors
        self.stem, self.down = Conv(3, 16, 6 - 1, 2), Conv(16, 32, 3, 2)
        self.c3, self.deeper = C3(32, 32), Conv(32, 64, 3, 2)
        self.sppf = SPPF(64, 64)
        self.up = nn.Upsample(scale_factor=2, mode="nearest")
        self.neck = C3(96, 64, shortcut=False)
        self.heads = nn.ModuleList(nn.Conv2d(64, anchors * self.numbers, 1) for _ in range(2))

    def forward(self, x):
        fine = self.c3(self.down(self.stem(x)))
        coarse = self.sppf(self.deeper(fine))
        maps = [self.neck(torch.cat((self.up(coarse), fine), 1)), coarse]
        found = []
        for head, each in zip(self.heads, maps, strict=True):
            result = head(each)
            batch, _, height, width = result.shape
            result = result.view(batch, self.anchors, self.numbers, height, width).permute(0, 1, 3, 4, 2)
            found.append(result.reshape(batch, -1, self.numbers))
        return torch.cat(found, 1)


class Residual(nn.Module):
    """As torchvision and timm write a bottleneck: one ReLU that is called three times."""

    def __init__(self, size=64):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(size, 16, 1, bias=False), nn.BatchNorm2d(16)
        self.conv2, self.bn2 = nn.Conv2d(16, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16)
        self.conv3, self.bn3 = nn.Conv2d(16, size, 1, bias=False), nn.BatchNorm2d(size)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = nn.Sequential(nn.Conv2d(size, size, 1, 2, bias=False), nn.BatchNorm2d(size))

    def forward(self, x):
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        return self.relu(self.bn3(self.conv3(y)) + self.downsample(x))


def randomized(model, seed=0):
    """New norms and biases are 0 and 1, which would hide that one was left out."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                numbers = torch.rand(4, module.num_features, generator=generator) + 0.5
                module.running_mean.copy_(numbers[0] - 1)
                module.running_var.copy_(numbers[1])
                if module.affine:
                    module.weight.copy_(numbers[2])
                    module.bias.copy_(numbers[3] - 1)
    return model.eval()


def detector():
    torch.manual_seed(0)
    return randomized(Detector())


def images(batch=2, size=64, channels=3, seed=0):
    return torch.randn(batch, channels, size, size, generator=torch.Generator().manual_seed(seed))
