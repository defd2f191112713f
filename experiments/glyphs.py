"""Images of 200 classes: Japanese characters in 35 fonts, over crops of photographs.

    python experiments/glyphs.py --out glyphs
    ssole compare experiments/glyphs.yaml --data glyphs/train.parquet --test glyphs/test.parquet

writes `glyphs/train.parquet` (25,000 images) and `glyphs/test.parquet` (5,000): 32 x 32 RGB, with the character as the
label. As in digits-m, an image is | photo crop - glyph | in each channel. Every pair of a character and a font belongs
to one split, and so does every pixel of the photographs. A mirrored character is another one: train without flips.

The fonts are free, and packages of Debian 12:

    apt-get install fonts-{aoyagi-kouzan-t,aoyagi-soseki,hanazono,horai-umefont,ipaexfont,ipamj-mincho,kiloji,konatu} \\
        fonts-{kouzan-mouhitsu,lxgw-wenkai,migmix,monapo,morisawa-bizud-gothic,morisawa-bizud-mincho,motoya-l-cedar} \\
        fonts-{motoya-l-maruberi,noto-cjk,oradano-mincho-gsrr,sawarabi-gothic,takao,umeplus,vlgothic,yusei-magic}
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from sklearn.datasets import load_sample_images

Pixels = NDArray[np.uint8]

FONTS = """
ipaexg.ttf ipaexm.ttf NotoSansCJK-Bold.ttc NotoSerifCJK-Regular.ttc NotoSerifCJK-Bold.ttc AoyagiKouzanT.ttf
aoyagi-soseki.ttf BIZUDGothic-Bold.ttf BIZUDGothic-Regular.ttf BIZUDMincho-Regular.ttf HanaMinA.ttf
ume-hgo4.ttf ume-pmo3.ttf ume-tgc5.ttf ipamjm.ttf kiloji.ttf kiloji_b.ttf Konatu.ttf
kouzan-mouhitsu-gyosho.ttf kouzan-mouhitsu.ttf LXGWWenKai-Bold.ttf LXGWWenKai-Light.ttf LXGWWenKai-Regular.ttf
migmix-1p-bold.ttf migmix-2p-regular.ttf migu-1c-bold.ttf monapo.ttf MTLc3m.ttf MTLmr3m.ttf OradanoGSRR.ttf
sawarabi-gothic-medium.ttf TakaoMincho.ttf umeplus-gothic.ttf VL-Gothic-Regular.ttf YuseiMagic-Regular.ttf
""".split()  # noqa: SIM905
# Among those that are taught first in Japanese schools.
CHARACTERS = (
    "一右雨円王音下火花貝学気九休玉金空月犬見五口校左三山子四糸字耳七車手十出女小上森人水正生青夕石赤千川"
    "先早草足村大男竹中虫町天田土二日入年白八百文木本名目立力林六引羽雲園遠何科夏家歌画回会海絵外角楽活間"
    "丸岩顔汽記帰弓牛魚京強教近兄形計元言原戸古午後語工公広交光考行高黄合谷国黒今才細作算止市矢姉思紙寺自"
    "時室社弱首秋週春書少場色食心新親図数西声星晴切雪船線前組走多太体台地池知茶昼長鳥朝直通弟店点電刀冬当"
)
IMAGES = {"train": 25_000, "test": 5_000}
TEST_SHARE = 0.2  # of the pairs of character and font
SIDE = 32
GLYPH = 64  # pixels of the drawn glyph, before it is scaled
GLYPH_SIDES = (18, 29)
CROP_SIDES = (32, 112)
SPLIT_COLUMN = 400


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the two files")
    parser.add_argument("--fonts", type=Path, default=Path("/usr/share/fonts"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    fonts = open_fonts(args.fonts)
    glyphs = [(label, draw(character, font)) for label, character in enumerate(CHARACTERS) for font in fonts]
    order = rng.permutation(len(glyphs))
    tested = round(TEST_SHARE * len(glyphs))
    for split, chosen in (("test", order[:tested]), ("train", order[tested:])):
        write(args.out / f"{split}.parquet", [glyphs[i] for i in chosen], split, rng)


def open_fonts(folder: Path) -> list[ImageFont.FreeTypeFont]:
    """The fonts at GLYPH pixels, from files below a folder."""
    files = {path.name: path for path in folder.rglob("*.tt?")}
    if absent := [name for name in FONTS if name not in files]:
        raise SystemExit(f"fonts not found below {folder}: {', '.join(absent)}")
    return [ImageFont.truetype(str(files[name]), GLYPH) for name in FONTS]


def draw(character: str, font: ImageFont.FreeTypeFont) -> Pixels:
    """(64, 64) uint8 glyph that fills its square in one direction."""
    canvas = Image.new("L", (2 * GLYPH, 2 * GLYPH))
    ImageDraw.Draw(canvas).text((GLYPH, GLYPH), character, 255, font, anchor="mm")
    box = canvas.getbbox()
    if box is None:
        raise SystemExit(f"{font.path} does not have {character}")
    return np.asarray(canvas.crop(square(box)).resize((GLYPH, GLYPH), Image.Resampling.BOX))


def square(box: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    """Smallest square around a box (left, top, right, bottom), with the same centre."""
    left, top, right, bottom = box
    side = max(right - left, bottom - top)
    left, top = (left + right - side) // 2, (top + bottom - side) // 2
    return left, top, left + side, top + side


def write(path: Path, glyphs: list[tuple[int, Pixels]], split: str, rng: np.random.Generator) -> None:
    """Write the images of a split: its glyphs in turn, each time at another place on another crop."""
    photos = [
        photo[:, :SPLIT_COLUMN] if split == "train" else photo[:, SPLIT_COLUMN:]
        for photo in load_sample_images().images
    ]
    images, labels = [], []
    for number in range(IMAGES[split]):
        label, glyph = glyphs[number % len(glyphs)]
        side = int(rng.integers(GLYPH_SIDES[0], GLYPH_SIDES[1] + 1))
        top, left = rng.integers(0, SIDE - side + 1, 2)
        strokes = np.zeros((SIDE, SIDE, 1), np.int16)
        small = Image.fromarray(glyph).resize((side, side), Image.Resampling.BOX)
        strokes[top : top + side, left : left + side, 0] = small
        image = np.abs(crop(photos, rng).astype(np.int16) - strokes).astype(np.uint8)
        file = io.BytesIO()
        Image.fromarray(image).save(file, "PNG")
        images.append({"bytes": file.getvalue(), "path": f"{number}.png"})
        labels.append(label)
    pq.write_table(pa.table({"img": images, "label": labels}), path)


def crop(photos: list[Pixels], rng: np.random.Generator) -> Pixels:
    """(32, 32, 3) uint8 random crop of a random photograph, with its channels in random order."""
    photo = photos[rng.integers(len(photos))]
    side = int(rng.integers(CROP_SIDES[0], CROP_SIDES[1] + 1))
    top, left = (int(rng.integers(0, length - side + 1)) for length in photo.shape[:2])
    part = Image.fromarray(np.ascontiguousarray(photo[top : top + side, left : left + side]))
    return np.asarray(part.resize((SIDE, SIDE), Image.Resampling.BOX))[..., rng.permutation(3)]


if __name__ == "__main__":
    main()
