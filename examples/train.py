"""Training from scratch, further training and adapter training, small enough for one CPU core.

Everything is seeded; on one machine with one thread the same call gives the same bytes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.nn.functional import cross_entropy

from examples.evaluate import answer_loss, encode
from examples.text.queries import Example

END: Final = "<|endoftext|>"
CONTEXT: Final = 128  # tokens per training window


@dataclass(frozen=True, slots=True)
class Schedule:
    """Steps of AdamW: linear warm-up over a tenth of them, then cosine decay to a tenth of `rate`."""

    steps: int
    rate: float
    batch: int = 16

    def get_rate(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        warm = max(1, self.steps // 10)
        if step < warm:
            return self.rate * (step + 1) / warm
        done = (step - warm) / max(1, self.steps - warm)
        return self.rate * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * done)))


def train_tokenizer(documents: Sequence[str], vocab_size: int) -> Any:
    """Byte-level BPE as Transformers loads it; <|endoftext|> is id 0 and opens and closes every document."""
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(documents, trainer)
    fast: Any = PreTrainedTokenizerFast  # untyped in Transformers
    return fast(tokenizer_object=bpe, bos_token=END, eos_token=END, model_max_length=512)


def encode_stream(documents: Sequence[str], tokenizer: Any) -> Tensor:
    """All documents in one row of ids, (n,), each with <|endoftext|> before it."""
    end = int(tokenizer.eos_token_id)
    rows = tokenizer(list(documents), add_special_tokens=False)["input_ids"]
    return torch.tensor([token for row in rows for token in (end, *row)] + [end])


def _optimize(
    parameters: Sequence[Tensor],
    schedule: Schedule,
    decay: float,
    compute_loss: Callable[[int], Tensor],
    say: Callable[[str], None],
) -> None:
    """AdamW with clipped gradients; `loss_of(step)` gives the mean loss of that step's batch."""
    optimizer = torch.optim.AdamW(parameters, lr=schedule.rate, betas=(0.9, 0.95), weight_decay=decay)
    for step in range(schedule.steps):
        for group in optimizer.param_groups:
            group["lr"] = schedule.get_rate(step)
        loss = compute_loss(step)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if (step + 1) % 50 == 0:
            say(f"  step {step + 1}/{schedule.steps}: {loss.item():.3f} nats per token")


def train_language(
    model: Any, stream: Tensor, schedule: Schedule, seed: int, say: Callable[[str], None]
) -> None:
    """Next-token training on random windows of `stream`, in place, float32."""
    generator = torch.Generator().manual_seed(seed)
    offsets = torch.arange(CONTEXT + 1)

    def compute_loss(_: int) -> Tensor:
        starts = torch.randint(len(stream) - CONTEXT, (schedule.batch,), generator=generator)
        window = stream[starts[:, None] + offsets]
        logits = model(input_ids=window[:, :-1]).logits
        return cross_entropy(logits.flatten(0, 1), window[:, 1:].flatten())

    model.train()
    _optimize(list(model.parameters()), schedule, 0.1, compute_loss, say)
    model.eval()


def train_adapter(
    model: Any,
    tokenizer: Any,
    items: Sequence[Example],
    schedule: Schedule,
    seed: int,
    say: Callable[[str], None],
    rank: int = 8,
) -> Any:
    """A LoRA on all seven linear modules, trained on the answers of `items`; returns the PEFT model."""
    from peft import LoraConfig, get_peft_model

    roles = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    torch.manual_seed(seed)
    adapted = get_peft_model(
        model, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=roles, task_type="CAUSAL_LM")
    )
    generator = torch.Generator().manual_seed(seed)

    def compute_loss(_: int) -> Tensor:
        indices = torch.randint(len(items), (schedule.batch,), generator=generator).tolist()
        total, count = answer_loss(adapted, *encode([items[number] for number in indices], tokenizer))
        return total / count

    adapted.train()
    _optimize([p for p in adapted.parameters() if p.requires_grad], schedule, 0.0, compute_loss, say)
    return adapted.eval()


@torch.inference_mode()
def text_loss(model: Any, stream: Tensor) -> float:
    """Mean nats per token of a held-out stream, read in consecutive windows."""
    windows = stream[: (len(stream) - 1) // CONTEXT * CONTEXT + 1]
    total, count = 0.0, 0
    for start in range(0, len(windows) - 1, CONTEXT * 16):
        rows = windows[start : start + CONTEXT * 16 + 1]
        ids, targets = rows[:-1].view(-1, CONTEXT), rows[1:]
        logits = model(input_ids=ids).logits.flatten(0, 1)
        total, count = total + float(cross_entropy(logits, targets, reduction="sum")), count + len(targets)
    return total / count


def compute_relative_distance(new: Any, old: Any) -> float:
    """‖W_new − W_old‖ / ‖W_old‖, Frobenius, over all linear layers of two models of the same shape."""
    before, squared_change, squared_norm = dict(old.named_parameters()), 0.0, 0.0
    for name, weight in new.named_parameters():
        if "_proj" in name:
            squared_change += float((weight - before[name]).detach().square().sum())
            squared_norm += float(before[name].detach().square().sum())
    return math.sqrt(squared_change / squared_norm)
