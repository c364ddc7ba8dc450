"""Train the built-in model: ``python -m recipes.tutor.train`` (from the repository root).

An interrupted training goes on where its last checkpoint was. The result replaces the old model in one step,
at the end, and only if it passes `examine`.

On a machine that does other work too, set ``OMP_NUM_THREADS=1``: two threads that wait for each other on two busy
cores are many times slower than one. Where there is a C++ compiler the blocks are compiled, which halves the time.
"""

import argparse
import hashlib
import logging
import os
import random
import shutil
from functools import partial
from pathlib import Path

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, TQDMProgressBar
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, GenerationConfig, PreTrainedTokenizerFast

from steerkit.hooks import edit
from steerkit.vectors import new_folder

from . import courses
from .corpus import Corpus
from .judge import Judge
from .lessons import IGNORED, Batch, Lessons
from .loading import FOLDER, load
from .tokenization import train_tokenizer

VOCABULARY = 4096
BATCH_SIZE = 32
STEPS_PER_EPOCH = 50


def build_model(tokenizer: PreTrainedTokenizerFast) -> Gemma3ForCausalLM:
    """Make an untrained tutor.

    All layers but one see eight tokens, of which the end of the chat template is six: at the message's last position
    the persona is readable from the layer that sees everything. There is no second one, which at the end of a sentence
    could ask that position instead of the message: a direction means the same at both.
    """
    config = Gemma3TextConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=10,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=32,
        query_pre_attn_scalar=32,
        sliding_window=8,
        layer_types=["full_attention" if i == courses.FIRST_TO_READ else "sliding_attention" for i in range(10)],
        max_position_embeddings=512,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=True,
        attn_implementation="eager",
    )
    return Gemma3ForCausalLM(config)


class TutorTraining(LightningModule):
    """Next-token loss on the answers; Muon for the matrices, AdamW for embeddings and norms.

    Optimization is manual because Lightning's automatic one takes a single optimizer.
    """

    def __init__(self, model: Gemma3ForCausalLM, lessons: Lessons) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.model, self.lessons = model, lessons
        self.exams = lessons.exams()

    def on_fit_start(self) -> None:
        """Compile the blocks; their insides only, so that the hooks of `edit` stay in sight."""
        if shutil.which(os.environ.get("CXX", "c++")):
            for block in self.model.model.layers:
                block.forward = torch.compile(block.forward, dynamic=True)

    def on_fit_end(self) -> None:
        """Leave the blocks as they were: answering one token at a time would compile them anew."""
        for block in self.model.model.layers:
            block.__dict__.pop("forward", None)

    def losses(self, batch: Batch, learned: Tensor) -> Tensor:
        """Cross-entropy of the tokens that are learned, in nats. Padding is on the right, where nothing looks."""
        ids, learned = batch[0], learned[:, 1:]
        hidden = self.model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
        logits = self.model.lm_head(hidden[learned]).float()
        return cross_entropy(logits, ids[:, 1:][learned], reduction="none")

    @property
    def course(self) -> courses.Course:
        """The course that is on. Lightning counts the steps of both optimizers."""
        return courses.at(self.global_step // 2)[0]

    def on_train_epoch_start(self) -> None:
        """Leave alone what this course does not train."""
        for layer, block in enumerate(self.model.model.layers):
            block.requires_grad_(layer >= self.course.frozen)
        self.model.model.embed_tokens.requires_grad_(not self.course.frozen)

    def training_step(self, batch: Batch) -> None:
        """One step of both optimizers."""
        _, labels, weights = batch
        weights = weights if self.course.weighs else (labels != IGNORED).float()
        learned = weights > 0
        # Chance depends on the step alone, so that a resumed training is the uninterrupted one.
        chance = torch.Generator().manual_seed(1_000_000 * self.lessons.seed + self.global_step)
        layer = int(torch.randint(len(self.model.model.layers), (), generator=chance))
        pushes = [(layer, partial(self.course.push, layer=layer, chance=chance))]
        with edit(self.model.model.layers, pushes, eagerly=False):
            weights = weights[:, 1:][learned[:, 1:]]
            loss = (self.losses(batch, learned) * weights).sum() / weights.sum()
        self.manual_backward(loss)
        torch.nn.utils.clip_grad_norm_(self.parameters(), 1.0)
        for optimizer, schedule in zip(self.optimizers(), self.lr_schedulers(), strict=True):
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        self.log("loss", loss, prog_bar=True)

    def validation_step(self, batch: Batch, _: int, dataloader_idx: int) -> None:
        """Sum up the loss of an exam."""
        losses = self.losses(batch, batch[1] != IGNORED)
        self.totals[dataloader_idx] += float(losses.sum())
        self.counts[dataloader_idx] += len(losses)

    def on_validation_epoch_start(self) -> None:
        """Begin the sums anew."""
        self.totals, self.counts = [0.0] * len(self.exams), [0] * len(self.exams)

    def on_validation_epoch_end(self) -> None:
        """Report how far each exam's loss is above its floor."""
        for (name, exam), total, count in zip(self.exams.items(), self.totals, self.counts, strict=True):
            self.log(f"gap_{name}", total / count - exam.entropy, prog_bar=True)

    def train_dataloader(self) -> DataLoader[Batch]:
        """Make the lessons of this epoch as it begins."""
        course, _ = courses.at(self.current_epoch * STEPS_PER_EPOCH)
        return _loader(self.lessons.epoch(self.current_epoch, STEPS_PER_EPOCH, course.brief))

    def val_dataloader(self) -> list[DataLoader[Batch]]:
        """Return the exams, always the same."""
        return [_loader(exam.batches) for exam in self.exams.values()]

    def configure_optimizers(self) -> tuple[list[torch.optim.Optimizer], list[LambdaLR]]:
        """Muon is for the matrices between hidden states; embeddings and norms have another geometry."""
        embeddings = self.model.get_input_embeddings().weight
        matrices = [p for p in self.model.parameters() if p.ndim == 2 and p is not embeddings]
        others = [p for p in self.model.parameters() if p.ndim != 2 or p is embeddings]
        optimizers: list[torch.optim.Optimizer] = [
            torch.optim.Muon(matrices, lr=0.02, momentum=0.95, weight_decay=0.01),
            torch.optim.AdamW(others, lr=3e-3, betas=(0.9, 0.98), weight_decay=0.0),
        ]
        return optimizers, [LambdaLR(optimizer, _learning_rate) for optimizer in optimizers]


def _learning_rate(step: int) -> float:
    course, of_course = courses.at(step)
    return course.learning_rate(of_course)


def _loader(batches: list[Batch]) -> DataLoader[Batch]:
    return DataLoader(batches, batch_size=None)  # type: ignore[arg-type]  # a list is all a loader needs


def examine(model: Gemma3ForCausalLM, tokenizer: PreTrainedTokenizerFast, corpus: Corpus) -> dict[str, float]:
    """Topic and facts of greedy answers about the concepts that never met a persona, by the persona's side.

    The loss is no substitute: a tutor trained too briefly has the right register and the wrong topic.
    """
    judge, generator, report = Judge(corpus), random.Random("examine"), {}
    concepts = [concept for concept in corpus.concepts if not concept.has_persona]
    for side in ("novice", "neutral", "expert"):
        templates = corpus.neutral if side == "neutral" else [t for t in corpus.levels["strong"] if t.side == side]
        prompts = [corpus.prompt(c, "what", generator.choice(templates), generator) for c in concepts]
        answers = [answer(model, tokenizer, prompt) for prompt in prompts]
        pairs = list(zip(answers, concepts, strict=True))
        report[f"{side} register"] = sum(judge.register(text) for text in answers) / len(pairs)
        report[f"{side} topic"] = sum(judge.topic(text) == concept.noun for text, concept in pairs) / len(pairs)
        report[f"{side} facts"] = sum(judge.facts(text, concept) for text, concept in pairs) / len(pairs)
    return report


@torch.inference_mode()
def answer(model: Gemma3ForCausalLM, tokenizer: PreTrainedTokenizerFast, prompt: str) -> str:
    """Answer one message with the most likely tokens."""
    message = [{"role": "user", "content": prompt}]
    inputs = tokenizer.apply_chat_template(message, add_generation_prompt=True, return_tensors="pt")
    output = model.generate(**inputs)
    text: str = tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return text


def publish(model: Gemma3ForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Put the model in place of the one before: a reader never meets half a model."""
    with new_folder(out, overwrite=True, holds="config.json") as fresh:
        model.save_pretrained(fresh)
        tokenizer.save_pretrained(fresh)
        shutil.copy(FOLDER / "card.md", fresh / "README.md")
        config = fresh / "config.json"
        # Stored in bf16, computed in float32: at this size bf16 is no faster on a CPU, and it rounds batches apart.
        config.write_text(config.read_text().replace('"dtype": "bfloat16"', '"dtype": "float32"'))
        for path in fresh.iterdir():
            path.chmod(0o644)


def fingerprint(*settings: object) -> str:
    """Name of a training: of its settings and of every file of the recipe, so that no other is resumed."""
    digest = hashlib.sha256(repr(settings).encode())
    for path in sorted([*FOLDER.rglob("*.py"), *FOLDER.rglob("*.yaml")]):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def fit(training: TutorTraining, checkpoint: Path) -> None:
    """Train to the end of the last course, from the checkpoint if there is one, and write one after each epoch."""
    trainer = Trainer(
        accelerator="cpu",
        precision="bf16-mixed",
        max_epochs=sum(course.steps for course in courses.COURSES) // STEPS_PER_EPOCH,
        reload_dataloaders_every_n_epochs=1,
        check_val_every_n_epoch=5,
        num_sanity_val_steps=0,
        logger=False,
        enable_model_summary=False,
        callbacks=[
            ModelCheckpoint(
                checkpoint.parent, checkpoint.stem, enable_version_counter=False, save_on_train_epoch_end=True
            ),
            TQDMProgressBar(refresh_rate=10),
        ],
    )
    trainer.fit(training, ckpt_path=checkpoint if checkpoint.exists() else None)


def train(seed: int, out: Path, workdir: Path) -> dict[str, float]:
    """Train, examine and publish a tutor; returns the report of `examine`."""
    torch.manual_seed(seed)
    corpus = load()
    generator = random.Random(f"{seed}/tokenizer")
    samples = [corpus.draw(generator) for _ in range(8000)]
    tokenizer = train_tokenizer((text for s in samples for text in (s.prompt, s.answer)), VOCABULARY)
    model = build_model(tokenizer)
    training = TutorTraining(model, Lessons(corpus, tokenizer, seed, BATCH_SIZE))
    fit(training, workdir / f"{fingerprint(seed)}.ckpt")
    model.to(torch.bfloat16).eval()
    model.generation_config = GenerationConfig(
        do_sample=False,
        max_new_tokens=160,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    report = examine(model, tokenizer, corpus)
    print(*(f"{name:16} {value:+.2f}" for name, value in report.items()), sep="\n")
    failed = [name for name, value in report.items() if name.endswith("topic") and value < 0.9]
    if failed:
        raise SystemExit(f"not published: {failed} below 0.9; lengthen the courses in recipes/tutor/courses.py")
    publish(model, tokenizer, out)
    return report


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("steerkit/builtin/tutor"))
    parser.add_argument("--workdir", type=Path, default=Path("build/tutor"))
    arguments = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    torch.set_num_threads(min(2, torch.get_num_threads()))
    train(arguments.seed, arguments.out, arguments.workdir)


if __name__ == "__main__":
    main()
