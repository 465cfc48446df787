"""Trains the bundled pair on two CPU cores and writes the ``bundled`` folder whole.

``python -m tunebatch.models.train`` reproduces tokenizer, target, draft, prompt corpus and model
card with the defaults below. Budgets are wall-clock minutes and the learning rate follows the
share of the budget spent, so a slower machine ends in time with fewer steps; data order and
initial weights are seeded, the number of steps is not. A stage whose record is already in the
work folder is not repeated, so a run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch.nn.functional import cross_entropy
from transformers import LlamaForCausalLM

from tunebatch.models import card, corpus, distill, pair
from tunebatch.models.budget import run_budget
from tunebatch.models.optim import PairOptimizer, schedule
from tunebatch.models.windows import Windows

BUNDLED = Path(__file__).parent / "bundled"
TOKENS_PER_STEP = 4096
# Attention makes long windows dear, so they come late: (share of the budget spent, window length).
TARGET_LENGTHS = ((0.0, 256), (0.5, 512), (0.88, corpus.CONTEXT))
DRAFT_LENGTHS = ((0.0, 256), (0.9, corpus.CONTEXT))


@dataclass(frozen=True)
class Run:
    """What one run of the script works on."""

    work: Path
    files: list[corpus.TokenDocuments]
    seed: int

    def stage(self, name: str, do: Callable[[], dict]) -> dict:
        """Do a stage unless its record is there; returns its record."""
        record = self.work / f"{name}.json"
        if not record.exists():
            record.write_text(json.dumps(do(), indent=1))
        return json.loads(record.read_text())


def train_target(run: Run, minutes: float) -> dict:
    """Train the target on short windows, the last share of the budget on whole-context ones."""
    torch.manual_seed(run.seed)
    model = pair.new_model(pair.target_config())
    optimizer = PairOptimizer(model, muon_lr=0.02, adam_lr=4e-3)
    windows = Windows(run.files, run.seed)

    def step(progress: float) -> float:
        length = max(length for start, length in TARGET_LENGTHS if progress >= start)
        ids = windows.batch(TOKENS_PER_STEP // length, length)
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(ids, use_cache=False).logits
        loss = cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten())
        loss.backward()
        optimizer.step(schedule(progress))
        return loss.item()

    record = run_budget(
        "target", minutes, step, lambda: pair.save_weights(model, run.work / "target", torch.float32)
    )
    return {**record, "tokens": record["steps"] * TOKENS_PER_STEP}


def _saver(draft: LlamaForCausalLM, folder: Path) -> Callable[[], None]:
    return lambda: pair.save_weights(draft, folder, torch.float32)


def train_draft_on_text(run: Run, minutes: float) -> dict:
    """Distil the draft on library text, which gives it the language before the target's own habits."""
    torch.manual_seed(run.seed + 1)
    target = pair.load_float32(run.work / "target").bfloat16()
    draft = pair.new_model(pair.draft_config())
    distill.start_from_target(draft, target)
    windows = Windows(run.files, run.seed + 1)
    step = distill.text_step(target, draft, windows, DRAFT_LENGTHS)
    record = run_budget("draft, text", minutes, step, _saver(draft, run.work / "draft-text"))
    return {**record, "tokens": record["steps"] * distill.TOKENS_PER_STEP}


def train_draft_on_policy(run: Run, write_minutes: float, minutes: float) -> dict:
    """Distil the draft on what the target writes, which is what acceptance is measured on."""
    torch.manual_seed(run.seed + 2)
    target = pair.load_float32(run.work / "target").bfloat16()
    draft = pair.load_float32(run.work / "draft-text").train()
    documents = corpus.join_files(run.files)
    written = distill.write_continuations(target, documents, write_minutes, run.seed + 2)
    batches = [half for batch in written for half in distill.halves(batch)]
    windows = Windows(run.files, run.seed + 2)
    step = distill.continuation_step(target, draft, batches, windows, run.seed + 2)
    record = run_budget("draft, own output", minutes, step, _saver(draft, run.work / "draft"))
    return {**record, "written_tokens": sum(b.top_ids.shape[0] * b.top_ids.shape[1] for b in batches)}


def ship(work: Path, tokenizer: Tokenizer, heldout: corpus.TokenDocuments, folder: Path) -> None:
    """Write both models in bfloat16, their tokenizer, the prompt corpus and its licence."""
    for name in ("target", "draft"):
        pair.save_weights(pair.load_float32(work / name), folder / name, torch.bfloat16)
    corpus.save_tokenizer(tokenizer, folder / "target", folder / "draft")
    corpus.save_corpus(heldout, folder / "corpus.safetensors")
    for path in folder.rglob("*.safetensors"):
        # safetensors writes for the owner alone, and a wheel keeps that mode.
        path.chmod(0o644)
    (folder / "LICENSE.corpus").write_text(card.corpus_licence(Path(sysconfig.get_paths()["stdlib"])))


def parse_args() -> argparse.Namespace:
    """The script's options; the defaults are the settings of the bundled pair."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=Path("build/models"), help="checkpoints and records")
    parser.add_argument("--out", type=Path, default=BUNDLED, help="folder to ship into")
    parser.add_argument("--target-minutes", type=float, default=22.0)
    parser.add_argument("--draft-text-minutes", type=float, default=6.0)
    parser.add_argument("--write-minutes", type=float, default=6.0, help="the target writing continuations")
    parser.add_argument("--draft-minutes", type=float, default=7.0, help="distilling on the continuations")
    parser.add_argument("--note", default="", help="a sentence for the card on how the run went")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    """Train, ship and measure; see the module's docstring."""
    args = parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    texts = list(corpus.file_documents(held_out=False))
    tokenizer = corpus.train_tokenizer(d for documents in texts for d in documents)
    run = Run(args.work, corpus.tokenize(tokenizer, texts), args.seed)
    heldout_files = corpus.tokenize(tokenizer, corpus.file_documents(held_out=True))
    heldout = corpus.join_files(heldout_files)
    records = {
        "target": run.stage("target", lambda: train_target(run, args.target_minutes)),
        "draft_text": run.stage("draft-text", lambda: train_draft_on_text(run, args.draft_text_minutes)),
        "draft": run.stage(
            "draft", lambda: train_draft_on_policy(run, args.write_minutes, args.draft_minutes)
        ),
    }
    args.out.mkdir(parents=True, exist_ok=True)
    ship(args.work, tokenizer, heldout, args.out)
    joined = corpus.join_files(run.files)
    split = card.Split(
        len(run.files), len(joined.starts), len(joined.tokens),
        len(heldout_files), len(heldout.starts), len(heldout.tokens),
    )  # fmt: skip
    (args.out / "MODEL_CARD.md").write_text(card.model_card(args.out, heldout, split, records, args.note))


if __name__ == "__main__":
    main()
