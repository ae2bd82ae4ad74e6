"""Rules and backbones that are broken in one way each, for the test kit to find."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from fusionflow.backbones import Backbone
from fusionflow.config import Method
from fusionflow.fusion import Rule

_calls = itertools.count()


def energy(pair):
    """Share by magnitude, one half of nothing: what a rule should be."""
    mri, pet = np.abs(pair.mri), np.abs(pair.pet)
    largest = np.maximum(mri, pet)
    safe = np.where(largest > 0, largest, 1)
    mri, pet = mri / safe, pet / safe
    both = mri + pet
    return np.where(largest > 0, mri / np.where(largest > 0, both, 1), 0.5).astype(np.float32)


def double(pair):
    return energy(pair).astype(np.float64)


def one_for_all(pair):
    return np.float32(0.5) * np.ones((1, 1, 1), np.float32)


def beyond(pair):
    return energy(pair) + np.float32(0.5)


def nan_on_ties(pair):
    """Divides by the difference, which is nothing where both are equal."""
    with np.errstate(all="ignore"):
        difference = np.abs(pair.mri - pair.pet)
        return (difference / difference).astype(np.float32) * energy(pair)


def overflows(pair):
    with np.errstate(all="ignore"):
        mri, pet = pair.mri**2, pair.pet**2
        return np.where(mri + pet > 0, mri / (mri + pet), 0.5).astype(np.float32)


def counts_calls(pair):
    return energy(pair) * np.float32(1 / (1 + next(_calls)))


def by_slab(pair):
    """Scales by the largest coefficient of all slices."""
    largest = max(np.abs(pair.mri).max(), 1e-30)
    return (np.minimum(np.abs(pair.mri), largest) / largest).astype(np.float32)


def mutates(pair):
    np.multiply(pair.mri, 2, out=pair.mri)
    return energy(pair)


def sets_threads(pair):
    torch.set_num_threads(3)
    return energy(pair)


def by_threads(pair):
    return energy(pair) * np.float32(0.5 + 0.1 * torch.get_num_threads())


def nothing_but_nan(pair):
    return np.full_like(pair.mri, np.nan)


def unpicklable():
    return Rule("unpicklable", lambda pair: energy(pair))


SOUND_RULE = Rule("energy", energy)

#: What is broken -> the check that must find it, the rule, and a word of what must be said.
RULES = {
    "a name of two words": ("declaration", Rule("my rule", energy), "not one word"),
    "float64": ("shape_and_dtype", Rule("double", double), "float64"),
    "one weight for all": ("shape_and_dtype", Rule("one", one_for_all), "every coefficient"),
    "weights beyond 1": ("range", Rule("beyond", beyond), "share of the MRI"),
    "NaN": ("range", Rule("nan", nothing_but_nan), "NaN"),
    "NaN on ties": ("odd_values", Rule("ties", nan_on_ties), "NaN"),
    "NaN for huge values": ("odd_values", Rule("huge", overflows), "1e\\+30"),
    "a state": ("same_bits", Rule("counts", counts_calls), "other bits"),
    "slices coupled": ("slices_alone", Rule("slab", by_slab), "in a slab than alone"),
    "input changed": ("input_is_left_alone", Rule("mutates", mutates), "changes mri"),
    "a lambda": ("pickles", unpicklable(), "not of lambdas"),
    "threads set": ("threads", Rule("sets", sets_threads), "number of torch's threads"),
    "bits by threads": ("threads", Rule("by-threads", by_threads), "two threads"),
    "activities ignored": ("reads_backbone", Rule("idle", energy, True), "change nothing"),
}


class Forgets(Method):
    """Arrives in another process without its temperature."""

    def __reduce__(self):
        return _forgotten, (self.name, self.rule)


def _forgotten(name, rule):
    return Forgets(name=name, rule=rule)


class Net(nn.Module):
    """Two convolutions: what a backbone should be, with one layer more or another."""

    def __init__(self, *more, first=None, features=None):
        super().__init__()
        first = first or nn.Conv2d(3, 8, 3, padding=1)
        layers = [first, nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), *more]
        self.features = features(*layers) if features else nn.Sequential(*layers)


class Lambda(nn.Module):
    """A layer that calls a function."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, features):
        return self.function(features)


class Standardised(nn.Conv2d):
    """Its weight is not what it convolves with."""

    def forward(self, images):
        weight = self.weight - self.weight.mean(dim=(1, 2, 3), keepdim=True)
        return functional.conv2d(images, weight, self.bias, self.stride, self.padding)


class Fixed(nn.Conv2d):
    """Filters that no file holds."""

    def __init__(self):
        super().__init__(3, 8, 3, padding=1, device="cpu")

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        pass


class Counting(nn.Module):
    """Keeps whole numbers in its state."""

    def __init__(self):
        super().__init__()
        self.register_buffer("order", torch.arange(8))

    def forward(self, features):
        return features[:, self.order.long()]


class Loose(nn.Module):
    """Keeps numbers beside its state."""

    def __init__(self):
        super().__init__()
        self.register_buffer("gain", torch.ones(1), persistent=False)

    def forward(self, features):
        return features * self.gain


class DrawnOnce(nn.Module):
    """Another network each time that it is built."""

    def __init__(self):
        super().__init__()
        self.gain = 1 + random.random()

    def forward(self, features):
        return features * self.gain


def to_double(features):
    return features.double()


def log_of(features):
    return features.log()


def shift(features):
    return functional.pad(features, (24, 0, 24, 0))[..., :-24, :-24]


def drop(features):
    return functional.dropout(features, 0.5, training=True)


def centre_batch(features):
    return features - features.mean(0, keepdim=True)


def by_torch_threads(features):
    return features * torch.get_num_threads()


def cancels(features):
    return (features + 1e4) - 1e4


def write_over(features):
    return features.mul_(2)


def no_gradient(features):
    return features.detach()


def backbone(name, *makers, **options):
    """Declare a net with these layers after its own; they are read too."""
    build = partial(_build, makers, options)
    taps = {"relu1": 1, "conv2": 2, **{f"more{i}": 2 + i for i in range(1, len(makers) + 1)}}
    return Backbone(name, build, taps, tuple(taps))


def _build(makers, options):
    parts = {key: make() for key, make in options.items() if key == "first"}
    return Net(*(make() for make in makers), **{**options, **parts})


def layer(function):
    return partial(Lambda, function)


SOUND = backbone("sound")
_MODULE = Net()

#: What is broken -> the check that must find it, the backbone, and a word of what must be said.
BACKBONES = {
    "a tap beyond": ("declaration", replace(SOUND, taps={"conv9": 9}), "layer 9 of 3"),
    "two names": ("declaration", replace(SOUND, taps={"relu1": 1, "last": 1}), "two names"),
    "no such default": ("declaration", replace(SOUND, default_taps=("relu9",)), "relu9"),
    "one module": ("declaration", Backbone("one", lambda: _MODULE, {"relu1": 1}, ("relu1",)),
                   "one module twice"),
    "no sequence": ("declaration", backbone("list", features=lambda *of: nn.ModuleList(of)),
                    "nn.Sequential"),
    "grey input": ("declaration", backbone("grey", first=partial(nn.Conv2d, 1, 8, 3)),
                   "three channels"),
    "a loose tensor": ("declaration", backbone("loose", Loose), "beside its state"),
    "a lambda": ("pickles", Backbone("sent", lambda: Net(), {"relu1": 1}, ("relu1",)), "lambdas"),
    "a fixed size": ("tap_sizes", backbone("pooled", partial(nn.AdaptiveAvgPool2d, 8)), "stride"),
    "two strides": ("tap_sizes", backbone("squeezed", partial(nn.AvgPool2d, (2, 4))), "stride"),
    "borders cut": ("tap_sizes", backbone("cut", partial(nn.Conv2d, 8, 8, 13)), "borders"),
    "elsewhere": ("places", backbone("shifted", layer(shift)), "sees a dot at"),
    "float64": ("values", backbone("double", layer(to_double)), "float64"),
    "NaN": ("values", backbone("log", layer(log_of)), "NaN"),
    "cancellation": ("bfloat16", backbone("cancels", layer(cancels)), "bfloat16"),
    "dropout": ("same_bits", backbone("drops", layer(drop)), "other bits"),
    "built by chance": ("same_bits", backbone("drawn", DrawnOnce), "a second one"),
    "batch coupled": ("batches", backbone("centred", layer(centre_batch)), "in a batch"),
    "by threads": ("threads", backbone("threads", layer(by_torch_threads)), "two threads"),
    "taps written over": ("input_is_left_alone",
                          backbone("inplace", partial(nn.LeakyReLU, inplace=True)), "inplace"),
    "no gradient": ("gradients", backbone("detached", layer(no_gradient)), "no gradient"),
    "no plain convolution": ("folding", backbone("std", first=partial(Standardised, 3, 8, 3)),
                             "off by"),
    "reflected borders": ("folding", backbone("mirror", first=partial(
        nn.Conv2d, 3, 8, 3, padding=1, padding_mode="reflect")), "pads with zeros"),
    "whole numbers": ("reads_files", backbone("counting", Counting), "floating-point"),
    "drawn after reading": ("reads_files", backbone("again", DrawnOnce), "two networks"),
    "filters of no file": ("refuses_wrong_files", backbone("fixed", first=Fixed), "first layer"),
}  # fmt: skip
