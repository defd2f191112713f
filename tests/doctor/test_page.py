"""The printed page: facts, findings with examples, cost and the command, whatever the names of files hold."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from examined import damage, made, page, report_on

from ssole.doctor.contents import ASPECTS, Classes, Contents, Copies, Leak, Range
from ssole.doctor.estimate import Estimate, Quantiles
from ssole.doctor.report import Finding, Report, SecondSet
from ssole.doctor.scan import ChannelStatistics, Rate, Unreadable
from ssole.doctor.suggest import Suggestion


@pytest.mark.usefixtures("soon")
def test_what_the_page_says(folder: Path) -> None:
    text = " ".join(page(report_on(damage(folder), measure=True)).split())
    for words in (
        "photos: 16 images",
        "PNG 14, JPEG 1",
        "landscape, about 4:3",
        "1 .txt, 1 hidden: ignored",
        "look at this cannot be read: 1 of 16 images (6.2 %)",
        "[bold]empty.jpg: the image is empty (0 bytes).",
        "00.png: copy of 00.png",
        "16 images are far too few for learning a representation",
        "verdict training would work, but so few images teach a network nothing of use",
        "Estimated cost on this machine",
        "Suggested recipe: photos-fast",
        f" ssole pretrain --data {folder} --recipe photos-fast",
    ):
        assert words in text
    assert "Traceback" not in text


@pytest.mark.usefixtures("soon")
def test_the_command_is_not_wrapped(folder: Path) -> None:
    report = report_on(folder)
    assert report.suggestion is not None
    assert report.suggestion.command in page(report, width=40).splitlines()[-1]


@pytest.mark.usefixtures("soon")
def test_the_page_names_the_limit(folder: Path) -> None:
    report = report_on(folder, limit=5)
    assert (report.images, report.examined) == (12, 5)
    text = " ".join(page(report).split())
    assert "12 images; an evenly spaced sample of 5 was examined" in text
    assert "all 5 images examined can be read" in text


# Reports made by hand

SIDES = Range(min=8, median=1200, max=20_000)
CONTENTS = Contents(
    formats={"PNG": 1500, "JPEG": 3},
    modes={"RGB": 1500, "I;16B": 3, "XYZ": 1},
    width=SIDES,
    height=SIDES,
    shorter_side=SIDES,
    bytes=Range(min=200, median=2048, max=3 << 20),
    total_bytes=5 << 30,
    aspects=dict.fromkeys(ASPECTS, 0) | {"square": 1000, "wide": 4},
    one_size=False,
    blank=[],
    misnamed=[],
)
COST = Estimate(
    device="cpu",
    precision="float32",
    steps=12_000,
    batch_size=64,
    views=4,
    step_seconds=Quantiles(low=0.5, median=0.61234, high=2.0),
    decode_seconds=0.1,
    compile_seconds=0,
    seconds=Quantiles(low=60, median=600, high=10_800),
    steps_measured=7,
    batch_measured=64,
    memory_bytes=3 << 30,
    memory_available=8 << 30,
    disk_bytes=1 << 20,
    disk_available=1 << 40,
)


def report(**changes: Any) -> Report:
    """Report on 1,504 images, with changes."""
    return made(**{"images": 1504, "examined": 1504, "contents": CONTENTS, **changes})


def lines(found: Report) -> list[str]:
    """Lines of the page with single spaces, without empty ones."""
    return [" ".join(line.split()) for line in page(found, width=160).splitlines() if line.strip()]


def test_facts_are_named_and_counted() -> None:
    found = lines(report(ignored={".txt": 1200, "": 2}, hidden=3))
    assert found[0] == "mine: 1,504 images; read and compared in 1.2 s"
    for line in (
        "formats PNG 1,500, JPEG 3",
        "colours RGB 1,500, 16-bit grey, big-endian 3, XYZ 1",
        "size 5.0 GiB in all",
        "min median max",
        "width 8 1,200 20,000 px",
        "shorter side 8 1,200 20,000 px",
        "bytes each 200 B 2.0 KiB 3.0 MiB",
        "other files 1,200 .txt, 2 without suffix, 3 hidden: ignored",
    ):
        assert line in found, line
    assert found[-1] == "verdict these images are ready for training"


def test_the_longest_bar_has_a_fixed_length_and_the_shortest_is_seen() -> None:
    bars = {line.count("█") for line in lines(report()) if "█" in line}
    assert bars == {24, 1}


@pytest.mark.parametrize(
    ("classes", "line"),
    [
        (Classes(classes=10, smallest=50, largest=50, unlabelled=0), "classes 10, with 50 images each"),
        (
            Classes(classes=1000, smallest=2, largest=1300, unlabelled=7000),
            "classes 1,000, with 2 to 1,300 images each; 7,000 without a label",
        ),
    ],
)
def test_classes(classes: Classes, line: str) -> None:
    assert line in lines(report(classes=classes))


def test_of_a_sample_it_says_so() -> None:
    found = lines(report(images=2_000_000))
    assert found[0].startswith("mine: 2,000,000 images; an evenly spaced sample of 1,504 was examined (--limit)")
    assert "size 5.0 GiB in those examined" in found


def test_three_examples_of_a_finding_and_the_number_of_the_others() -> None:
    copies = [Copies(f"{i}.png", [f"{i} copy {j}.png" for j in range(5)]) for i in range(4)]
    unreadable = [Unreadable(i, f"{i}.jpg", "damaged") for i in range(3)]
    leaked = [Leak("t.png", "0.png", True), Leak("u.png", "1.png", False)]
    found = lines(
        report(
            exact_copies=copies,
            unreadable=unreadable,
            against=SecondSet(name="test", images=9, examined=9, unreadable=[], leaked=leaked),
            contents=dataclasses.replace(CONTENTS, blank=["white.png"], misnamed=["png.jpg"]),
            findings=[
                Finding("look", "exact_copies", "copies", "remove them"),
                Finding("stop", "unreadable", "unreadable"),
                Finding("stop", "leakage", "leaked"),
                Finding("look", "blank", "blank"),
                Finding("ok", "few", "many"),
            ],
        )
    )
    start = found.index("look at this copies")
    assert found[start:] == [
        "look at this copies",
        "remove them",
        "0.png: 0 copy 0.png, 0 copy 1.png, 0 copy 2.png, and 2 more",
        "1.png: 1 copy 0.png, 1 copy 1.png, 1 copy 2.png, and 2 more",
        "2.png: 2 copy 0.png, 2 copy 1.png, 2 copy 2.png, and 2 more",
        "and 1 more; --json FILE lists all",
        "stop unreadable",
        "0.jpg: damaged",
        "1.jpg: damaged",
        "2.jpg: damaged",
        "stop leaked",
        "t.png = 0.png",
        "u.png ≈ 1.png",
        "look at this blank",
        "white.png",
        "OK many",
        "verdict fix the points marked stop before training",
    ]


def test_names_of_files_neither_steer_the_terminal_nor_are_markup() -> None:
    odd = "[red]a\x1b[31m\u202e.png"
    found = "\n".join(
        lines(
            report(
                name=odd,
                exact_copies=[Copies(odd, [odd])],
                findings=[Finding("look", "exact_copies", odd, odd)],
                suggestion=Suggestion(recipe="photos", reasons=["[why]"], command=f"ssole pretrain --data {odd}"),
            )
        )
    )
    shown = r"[red]a\x1b[31m\u202e.png"
    assert found.count(shown) == 6
    assert "\x1b" not in found
    assert "because [why]" in found


def test_long_reasons_are_indented() -> None:
    suggestion = Suggestion(recipe="photos", reasons=["many words " * 9], command="ssole pretrain")
    found = page(report(suggestion=suggestion), width=60)
    block = found[found.index("Suggested") :].splitlines()[1:3]
    assert [len(line) - len(line.lstrip()) for line in block] == [2, 2]


def test_cost_in_words() -> None:
    found = lines(report(recipe="tiny", estimate=COST))
    start = found.index("Estimated cost on this machine") + 1
    assert found[start:] == [
        "recipe tiny: 12,000 steps of 64 images x 4 views",
        "machine cpu in float32",
        "time about 10.0 min (from 60 s to 3.0 h)",
        "memory about 3.0 GiB at its peak, of 8.0 GiB",
        "disk 1.0 MiB or more for checkpoints, of 1024.0 GiB free here",
        "measured 0.612 s a step (0.5 to 2) over 7 steps; other work on the machine makes it slower",
    ]
    scaled = dataclasses.replace(COST, batch_measured=16, compile_seconds=31.4)
    assert (
        "measured 0.612 s a step (0.5 to 2) over 7 steps of 16 images, scaled up, compiled in 31 s; "
        "other work on the machine makes it slower"
    ) in lines(report(recipe="tiny", estimate=scaled))


def test_what_was_measured() -> None:
    found = lines(
        report(
            recipe="tiny",
            statistics=ChannelStatistics(mean=[0.5, 0.25, 1.0], std=[0.1, 0.2, 0.0], images=99),
            decode=Rate(value=1234.5, threads=4, images=9),
            views=Rate(value=56.7, threads=1, images=9),
            preview="views.png",
        )
    )
    for line in (
        "channels mean 0.500 0.250 1.000, std 0.100 0.200 0.000 (in [0, 1], of 99 images)",
        "decoding 1,234 images/s on 4 threads, from files that are in memory already",
        "views 57 views/s with the recipe tiny",
        "preview views.png",
    ):
        assert line in found, line
    alone = lines(report(decode=Rate(value=9.0, threads=1, images=9)))
    assert "decoding 9 images/s on 1 thread, from files that are in memory already" in alone
