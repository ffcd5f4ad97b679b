"""Build the embedded `emoji_domains` data: concepts drawn by several artists, by code point.

    pip install "noisy-fm[build-data]"
    python tools/build_emoji_domains.py                           # the package's 32×32 set
    python tools/build_emoji_domains.py --size 64 --out ~/emoji   # the 64×64 set (30 MB)
    export NOISY_FM_EMOJI=~/emoji                                 # where data.load finds it

Needs `npm` (only to download the pinned packages below, checked by SHA-256) and three minutes. Two
runs give identical bytes. What is kept, left out and how the splits are drawn is said beside the
functions that do it; `drawings.csv` is the table they make, one row a drawing.
"""

import argparse
import csv
import hashlib
import io
import json
import re
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

SIZES = (32, 64)
CACHE = Path(tempfile.gettempdir()) / "npm"
NATIVE = 64  # Everything is drawn at 64×64 (what two of the sets ship); 32×32 is its 2×2 mean.

# SHA-256 and name@version of the tarballs, as `npm pack` writes them.
PINS = """
fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438  emoji-datasource-google@16.0.0
f64a530c63bca463bd8317fdc4615ce63a53a0c65018e4ce2d848aaba7a28877  emoji-datasource-twitter@16.0.0
55ee7d13485dec86e9f38c1f3a645a13382d33ff97c0cd845ee824b0aef45e68  openmoji@17.0.0
c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58  @lobehub/fluent-emoji-3d@1.1.0
8f9113c027c7c20eced0070354715a4093a459b8bef6332b91d45f38c9bdb147  @lobehub/fluent-emoji-flat@1.1.0
"""
PACKAGES = dict(line.split()[::-1] for line in PINS.split("\n") if line)
NAMES, ANNOTATIONS = "emoji-datasource-google@16.0.0", "openmoji@17.0.0"

# The order numbers the domains in the examples' ids: add new ones at the end.
DOMAINS = {
    "noto": {
        "source": "emoji-datasource-google@16.0.0",
        "folder": "package/img/google/64/",
        "licence": "Apache-2.0",
        "artist": "Google, Noto Color Emoji",
    },
    "twemoji": {
        "source": "emoji-datasource-twitter@16.0.0",
        "folder": "package/img/twitter/64/",
        "licence": "CC-BY-4.0",
        "artist": "Twitter, Inc. and other contributors, Twemoji",
    },
    "openmoji": {
        "source": "openmoji@17.0.0",
        "folder": "package/color/svg/",
        "licence": "CC-BY-SA-4.0",
        "artist": "OpenMoji, colour",
    },
    "lineart": {
        "source": "openmoji@17.0.0",
        "folder": "package/black/svg/",
        "licence": "CC-BY-SA-4.0",
        "artist": "OpenMoji, black line art",
    },
    "fluent3d": {
        "source": "@lobehub/fluent-emoji-3d@1.1.0",
        "folder": "package/assets/",
        "licence": "MIT",
        "artist": "Microsoft, Fluent Emoji 3D",
    },
    "fluentflat": {
        "source": "@lobehub/fluent-emoji-flat@1.1.0",
        "folder": "package/assets/",
        "licence": "MIT",
        "artist": "Microsoft, Fluent Emoji flat",
    },
}

TONES = {
    "1F3FB": "light",
    "1F3FC": "medium-light",
    "1F3FD": "medium",
    "1F3FE": "medium-dark",
    "1F3FF": "dark",
}
JOINER, VARIATION, FACING_RIGHT = "200D", "FE0F", "27A1"
FEMALE, MALE = "2640", "2642"
NEUTRAL = {"1F468": "1F9D1", "1F469": "1F9D1", "1F466": "1F9D2", "1F467": "1F9D2"}
# Concepts that differ by the people in them only, beyond what the code points show.
SAME_CONCEPT = {
    "1F483": "1F57A",  # woman, man dancing
    "1F478": "1F934",  # princess, prince, person with crown
    "1FAC5": "1F934",
    "1F936": "1F385",  # Mrs, Santa and Mx Claus
    "1F9D1-1F384": "1F385",
    "1FAC3": "1F930",  # pregnant man, person, woman
    "1FAC4": "1F930",
    "1F931": "1F9D1-1F37C",  # breast-feeding, feeding a baby
    "1F474": "1F9D3",  # old man, woman, person
    "1F475": "1F9D3",
    "1F46B": "1F9D1-1F91D-1F9D1",  # holding hands
    "1F46C": "1F9D1-1F91D-1F9D1",
    "1F46D": "1F9D1-1F91D-1F9D1",
    "1F9D1-2764-1F48B-1F9D1": "1F48F",  # kiss
    "1F9D1-2764-1F9D1": "1F491",  # couple with heart
}
MAN = re.compile(r"\b(man|men|boy|prince|santa claus|merman)\b")
WOMAN = re.compile(r"\b(woman|women|girl|princess|mrs\. claus|mermaid|breast-feeding)\b")


def main(argv=None):
    """Parse the command line, build, report the sizes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    package_data = Path(__file__).resolve().parents[1] / "noisy_fm" / "data" / "emoji"
    parser.add_argument("--size", type=int, choices=SIZES, default=32)
    parser.add_argument("--out", type=Path, default=package_data, help="default: %(default)s")
    parser.add_argument("--cache", type=Path, default=CACHE, help="npm tarballs: %(default)s")
    args = parser.parse_args(argv)
    build(args.size, args.out.expanduser(), args.cache.expanduser())
    for path in sorted(args.out.expanduser().iterdir()):
        print(f"{path.stat().st_size / 1e6:8.3f} MB  {path}")


def build(size, out, cache):
    """Write sheets, table, domains and SHA256SUMS to `out`."""
    tarballs = {package: fetch(package, cache) for package in PACKAGES}
    rows = read_rows(tarballs)
    drawn = {}
    for domain, about in DOMAINS.items():
        print(f"drawing {domain}", file=sys.stderr, flush=True)
        files = read_drawings(tarballs[about["source"]], about["folder"])
        drawn[domain] = {
            row["codepoints"]: draw(*files[row["codepoints"]])
            for row in rows
            if row["codepoints"] in files and belongs(domain, row)
        }
    repeats = {domain: identical(images) for domain, images in drawn.items()}
    for domain, images in drawn.items():
        leave_out_repeats(rows, images, repeats[domain])
    merge_groups(rows, repeats)
    rows = [row for row in rows if any(row["codepoints"] in images for images in drawn.values())]
    number_groups(rows)
    split(rows)
    out.mkdir(parents=True, exist_ok=True)
    write_table(out / "drawings.csv", rows, drawn)
    about = {name: {k: v for k, v in d.items() if k != "folder"} for name, d in DOMAINS.items()}
    (out / "domains.json").write_text(json.dumps(about, indent=1) + "\n")
    for domain, images in drawn.items():
        cells = [shrink(images[r["codepoints"]], size) for r in rows if r["codepoints"] in images]
        sheet(np.stack(cells)).save(
            out / f"{domain}_{size}.webp", lossless=True, quality=100, method=6
        )
    names = ["domains.json", "drawings.csv", *sorted(path.name for path in out.glob("*.webp"))]
    sums = [f"{hashlib.sha256((out / name).read_bytes()).hexdigest()}  {name}\n" for name in names]
    (out / "SHA256SUMS").write_text("".join(sums))


def fetch(package, cache):
    """The bytes of a pinned npm tarball, downloaded into `cache` unless it is there."""
    cache.mkdir(parents=True, exist_ok=True)
    path = cache / (package.lstrip("@").replace("/", "-").replace("@", "-") + ".tgz")
    if not path.exists():
        subprocess.run(
            ["npm", "pack", package, "--silent", "--pack-destination", str(cache)],
            check=True,
            stdout=subprocess.DEVNULL,
        )
    payload = path.read_bytes()
    found = hashlib.sha256(payload).hexdigest()
    if found != PACKAGES[package]:
        raise SystemExit(f"{path}: SHA-256 is {found}, expected {PACKAGES[package]}: delete it")
    return payload


def codepoint_key(sequence):
    """`1F3C3-200D-2642`: upper case, four digits at least, no variation selector."""
    points = [f"{int(point, 16):04X}" for point in sequence.split("-")]
    return "-".join(point for point in points if point != VARIATION)


def read_drawings(tarball, folder):
    """Code point key → (bytes, suffix) of every drawing under `folder`."""
    files = {}
    with tarfile.open(fileobj=io.BytesIO(tarball)) as archive:
        for member in archive:
            path = Path(member.name)
            if not member.isfile() or not member.name.startswith(folder):
                continue
            try:
                key = codepoint_key(path.stem)
            except ValueError:  # three ill-named subdivision flags
                continue
            # Keycaps come twice in the Fluent sets, with and without leading zeros: equal drawings.
            files.setdefault(key, (archive.extractfile(member).read(), path.suffix))
    return files


def read_member(tarball, name):
    """One JSON file of a tarball."""
    with tarfile.open(fileobj=io.BytesIO(tarball)) as archive:
        return json.load(archive.extractfile(name))


def read_rows(tarballs):
    """One row a drawing, in Unicode's order: every emoji, and its variants of one skin tone.

    Left out: the five bare skin-tone swatches, and couples of two different tones. Names are the
    CLDR short names that openmoji.json carries.
    """
    names = {
        codepoint_key(entry["hexcode"]): entry["annotation"]
        for entry in read_member(tarballs[ANNOTATIONS], "package/data/openmoji.json")
    }
    entries = read_member(tarballs[NAMES], "package/emoji.json")
    rows = []
    for entry in sorted(entries, key=lambda entry: (entry["sort_order"], entry["unified"])):
        if entry["category"] == "Component":
            continue
        concept = codepoint_key(entry["unified"])
        variants = entry.get("skin_variations", {})
        drawings = [(concept, "default" if variants else "none")]
        for tones, variant in variants.items():
            tone, *others = set(tones.split("-"))
            if not others:
                drawings.append((codepoint_key(variant["unified"]), TONES[tone]))
        rows += [
            {
                "codepoints": codepoints,
                "concept": concept,
                "group": concept_group(concept),
                "name": names[codepoints],
                "category": entry["category"],
                "subcategory": entry["subcategory"],
                "skin_tone": tone,
                "gender": names[concept],
            }
            for codepoints, tone in drawings
        ]
    name_genders(rows)
    return rows


def concept_group(concept):
    """The code points that every gender, age pairing and direction of one concept shares."""
    points = concept.split("-")
    if len(points) > 1:
        points = [p for p in points if p not in (JOINER, FEMALE, MALE, FACING_RIGHT)]
    points = [NEUTRAL.get(point, point) for point in points]
    if len(points) > 1 and set(points) <= {"1F9D1", "1F9D2"}:
        return "1F46A"  # every family
    key = "-".join(points)
    return SAME_CONCEPT.get(key, key)


def name_genders(rows):
    """Replace each row's concept name in `gender` by man, woman, person or none.

    A person is someone whose concept Unicode also has as a man or a woman; families and couples are
    none.
    """
    gendered = set()
    for row in rows:
        name, row["gender"] = row["gender"].lower(), "none"
        if row["category"] == "People & Body" and row["subcategory"] != "family":
            man, woman = bool(MAN.search(name)), bool(WOMAN.search(name))
            row["gender"] = "none" if man == woman else "man" if man else "woman"
            if row["gender"] != "none":
                gendered.add(row["group"])
    for row in rows:
        alone = row["subcategory"].startswith("person") and "family" not in row["name"]
        if alone and row["gender"] == "none" and row["group"] in gendered:
            row["gender"] = "person"


def belongs(domain, row):
    """Whether a domain's drawing is the artist's own and says what its name says.

    The Fluent packages fill in Noto's country flags, which Microsoft never drew.
    OpenMoji's line art has one drawing for all skin tones, and one empty frame for every country.
    """
    if domain in ("fluent3d", "fluentflat"):
        return row["subcategory"] not in ("country-flag", "subdivision-flag")
    if domain == "lineart":
        return row["subcategory"] != "country-flag" and row["skin_tone"] in ("none", "default")
    return True


def draw(payload, suffix):
    """A drawing on white, `NATIVE` pixels square: vectors at four times that, then the area mean.

    Compositing first makes averaging the same as with premultiplied alpha.
    """
    if suffix == ".svg":
        import resvg_py  # here, so that --help does without

        payload = resvg_py.svg_to_bytes(
            svg_string=payload.decode(), width=4 * NATIVE, skip_system_fonts=True
        )
    image = Image.open(io.BytesIO(bytes(payload))).convert("RGBA")
    side = max(image.size)
    canvas = Image.new("RGBA", (side, side), "white")
    canvas.alpha_composite(image, ((side - image.width) // 2, (side - image.height) // 2))
    return np.asarray(canvas.convert("RGB").resize((NATIVE, NATIVE), Image.Resampling.BOX))


def shrink(image, size):
    """The area mean of an `NATIVE`-pixel image, rounded half up."""
    k = NATIVE // size
    blocks = image.reshape(size, k, size, k, 3).astype(np.uint16).sum((1, 3))
    return ((2 * blocks + k * k) // (2 * k * k)).astype(np.uint8)


def identical(images):
    """Lists of code points whose drawings in one domain are the same, pixel for pixel."""
    found = {}
    for codepoints, image in images.items():
        found.setdefault(image.tobytes(), []).append(codepoints)
    return [codepoints for codepoints in found.values() if len(codepoints) > 1]


def leave_out_repeats(rows, images, repeats):
    """Of identical drawings keep the first if they are one concept's, else none; blanks go too.

    A drawing that stands for Norway and for Svalbard is a sure example of neither. The blank one is
    the line art of the NEW button, which is white in the package.
    """
    group = {row["codepoints"]: row["group"] for row in rows}
    for codepoints in repeats:
        keep = len({group[key] for key in codepoints}) == 1
        for key in codepoints[keep:]:
            del images[key]
    for key in [key for key, image in images.items() if image.min() == 255]:
        del images[key]


def merge_groups(rows, repeats):
    """Put concepts that one artist draws alike (Norway, Svalbard) into one group, for the split.

    Line art is no guide here: without colour, five circles and a full moon are the same.
    """
    group = {row["codepoints"]: row["group"] for row in rows}
    for domain, lists in repeats.items():
        for first, *others in lists if domain != "lineart" else ():
            for other in others:
                old, new = group[other], group[first]
                group = {key: new if value == old else value for key, value in group.items()}
    for row in rows:
        row["group"] = group[row["codepoints"]]


def number_groups(rows):
    """Number the groups in the order they come; keep the code points as the split's key."""
    numbers = {}
    for row in rows:
        row["group_key"] = row["group"]
        row["group"] = numbers.setdefault(row["group"], len(numbers))


def split(rows):
    """Give each concept group a split: 20 % test, 20 % train, the rest pretrain, by subcategory.

    Within the subcategory of its first row, groups are ranked by the SHA-256 of
    `emoji_domains/` + the group's code points; of n, the first ⌊n/5 + ½⌋ go to test, as many to
    train.
    """
    strata = {}
    for row in rows:
        strata.setdefault(row["group_key"], row["subcategory"])
    splits = {}
    for stratum in sorted(set(strata.values())):
        keys = [key for key, value in strata.items() if value == stratum]
        keys.sort(key=lambda key: hashlib.sha256(f"emoji_domains/{key}".encode()).digest())
        fifth = (2 * len(keys) + 5) // 10
        for rank, key in enumerate(keys):
            splits[key] = "test" if rank < fifth else "train" if rank < 2 * fifth else "pretrain"
    for row in rows:
        row["split"] = splits[row["group_key"]]


def write_table(path, rows, drawn):
    """Write `drawings.csv`: the metadata, and a 1 under each domain that has the drawing."""
    columns = [name for name in rows[0] if name != "group_key"]
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*columns, *drawn])
        for row in rows:
            has = [int(row["codepoints"] in images) for images in drawn.values()]
            writer.writerow([row[column] for column in columns] + has)


def sheet(cells):
    """Lay [n h w c] cells out row by row in a square sheet, white where there is none."""
    n, size = cells.shape[:2]
    across = int(np.ceil(np.sqrt(n)))
    down = -(-n // across)
    grid = np.full((down * across, size, size, 3), 255, np.uint8)
    grid[:n] = cells
    grid = grid.reshape(down, across, size, size, 3).transpose(0, 2, 1, 3, 4)
    return Image.fromarray(grid.reshape(down * size, across * size, 3))


if __name__ == "__main__":
    main()
