"""One training loop written for mlcore, for plain PyTorch, and for each peer as its documentation shows it.

Every loop trains the same 64-128-10 perceptron on batches of 16 with AdamW, clipping to 1.0 and a cosine schedule that
moves every step, and reads its loss every 50 steps. The clock is in the model: its forward pass notes the time at two
given steps, so that set-up and tear-down of no framework count, and everything in between does.
"""

import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.clocked import BATCH, LOG_EVERY, RATE, ClockedModel, Data, ReadyMade
from benchmarks.common import peer


def bare(model: ClockedModel, data: Data, steps: int, *, fused: bool) -> None:
    """What everybody writes."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, fused=fused)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
    loader = data.torch_loader()
    step, total = 0, torch.zeros(())
    while step < steps:
        for x, y in loader:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            total += loss.detach()
            step += 1
            if step % LOG_EVERY == 0:
                total.item()
                total.zero_()
            if step == steps:
                break


def ours(model: ClockedModel, data: Data, steps: int, *, fused: bool) -> None:
    """`mlcore.training.trainer.Trainer`, in a module of its own, so that the other loops do not pay for its imports."""
    from benchmarks.our_loop import train

    if not fused:
        raise ValueError("mlcore's optimisers are fused")
    train(model, data, steps)


def fabric(model: ClockedModel, data: Data, steps: int, *, fused: bool) -> None:
    """Lightning Fabric, as its "convert to Fabric" guide says."""
    library = peer("lightning.fabric")
    runner = library.Fabric(accelerator="cpu", devices=1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, fused=fused)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
    wrapped, wrapped_optimizer = runner.setup(model, optimizer)
    loader = data.torch_loader()
    if not data.ready_made:
        loader = runner.setup_dataloaders(loader)
    step, total = 0, torch.zeros(())
    while step < steps:
        for x, y in loader:
            wrapped_optimizer.zero_grad()
            loss = F.cross_entropy(wrapped(x), y)
            runner.backward(loss)
            runner.clip_gradients(wrapped, wrapped_optimizer, max_norm=1.0)
            wrapped_optimizer.step()
            schedule.step()
            total += loss.detach()
            step += 1
            if step % LOG_EVERY == 0:
                total.item()
                total.zero_()
            if step == steps:
                break


def accelerate(model: ClockedModel, data: Data, steps: int, *, fused: bool) -> None:
    """Hugging Face Accelerate, as its quick tour says."""
    accelerator = peer("accelerate").Accelerator(cpu=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, fused=fused)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
    loader = data.torch_loader()
    wrapped, optimizer, schedule = accelerator.prepare(model, optimizer, schedule)
    if not data.ready_made:
        loader = accelerator.prepare(loader)
    step, total = 0, torch.zeros(())
    while step < steps:
        for x, y in loader:
            optimizer.zero_grad()
            loss = F.cross_entropy(wrapped(x), y)
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(wrapped.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            total += loss.detach()
            step += 1
            if step % LOG_EVERY == 0:
                total.item()
                total.zero_()
            if step == steps:
                break


def hf_trainer(model: ClockedModel, data: Data, steps: int, *, fused: bool) -> None:
    """transformers.Trainer: the model returns its loss; nothing is saved or reported."""
    library = peer("transformers")

    class WithLoss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
            logits = self.model(x)
            return F.cross_entropy(logits, labels), logits

    class InMemory(library.Trainer):  # type: ignore[name-defined,misc]
        def get_train_dataloader(self) -> Any:
            return _Named(data.batches)

    class Named(torch.utils.data.Dataset[dict[str, Tensor]]):
        def __len__(self) -> int:
            return len(data.dataset)

        def __getitem__(self, index: int) -> dict[str, Tensor]:
            x, y = data.dataset[index]
            return {"x": x, "labels": y}

    with tempfile.TemporaryDirectory() as folder:
        kind = InMemory if data.ready_made else library.Trainer
        trainer = kind(model=WithLoss(), args=_hf_arguments(folder, steps, fused=fused), train_dataset=Named())
        trainer.remove_callback(library.PrinterCallback)
        trainer.train()


def _hf_arguments(folder: str, steps: int, *, fused: bool) -> Any:
    library = peer("transformers")
    return library.TrainingArguments(
        output_dir=folder,
        max_steps=steps,
        per_device_train_batch_size=BATCH,
        learning_rate=RATE,
        weight_decay=0.01,
        optim="adamw_torch_fused" if fused else "adamw_torch",
        lr_scheduler_type="cosine",
        max_grad_norm=1.0,
        logging_steps=LOG_EVERY,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
    )


class _Named(ReadyMade):
    def __iter__(self) -> Iterator[Any]:
        return ({"x": x, "labels": y} for x, y in self._batches)


def lightning_trainer(model: ClockedModel, data: Data, steps: int, *, fused: bool) -> None:
    """lightning.pytorch.Trainer with a LightningModule; nothing is saved, no bar is drawn."""
    library = peer("lightning.pytorch")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

    class Module(library.LightningModule):  # type: ignore[name-defined,misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:  # noqa: ARG002 - Lightning's signature
            x, y = batch
            loss = F.cross_entropy(self.model(x), y)
            self.log("train_loss", loss)
            return loss

        def configure_optimizers(self) -> dict[str, Any]:
            optimizer = torch.optim.AdamW(self.parameters(), lr=RATE, fused=fused)
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    trainer = library.Trainer(
        accelerator="cpu",
        max_steps=steps,
        max_epochs=-1,
        gradient_clip_val=1.0,
        log_every_n_steps=LOG_EVERY,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Module(), data.torch_loader())


Loop = Callable[..., None]

# Title, the module it needs (None: nothing but torch and mlcore), the loop.
LOOPS: dict[str, tuple[str, str | None, Loop]] = {
    "bare": ("bare PyTorch loop", None, bare),
    "ours": ("mlcore Trainer", None, ours),
    "fabric": ("Lightning Fabric", "lightning.fabric", fabric),
    "accelerate": ("Accelerate", "accelerate", accelerate),
    "hf": ("transformers Trainer", "transformers", hf_trainer),
    "lightning": ("Lightning Trainer", "lightning.pytorch", lightning_trainer),
}


def run_loop(name: str, data: Data, *, steps: int, fused: bool = True) -> float:
    """Train `steps` steps with the loop `name`; returns seconds per step."""
    model = ClockedModel(steps)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        LOOPS[name][2](model, data, steps, fused=fused)
    return model.seconds_per_step()
