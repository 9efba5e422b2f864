"""From the typed configuration to objects; the only place of this app where the two meet."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from mlcore.base.distributed import World, broadcast_object
from mlcore.base.errors import UserError
from mlcore.data.fingerprints import cache_file
from mlcore.data.images import image_size
from mlcore.data.loader import Transform
from mlcore.metrics.ranking import Interval, auroc_interval
from mlcore.report.page import Section, Table
from mlcore.run.build import Data, TrainingSetup
from mlcore.run.deciding import Decider
from mlcore.run.member import member_splits
from mlcore.run.splits import Held
from mlcore.run.splits import Splits as OfRun
from mlcore.training.evaluator import Predictions
from mlcore.training.optim import GroupRule
from quartet.apps.multimodal_ads.baselines import baselines
from quartet.apps.multimodal_ads.config import AdsConfig, AdsTrainConfig, DataConfig
from quartet.apps.multimodal_ads.data.augment import Augmentation, InTurn, TextDropout
from quartet.apps.multimodal_ads.data.batches import KnownFeatures, Pixels, SampleSource, collate
from quartet.apps.multimodal_ads.data.duplicates import check_duplicates, picture_groups
from quartet.apps.multimodal_ads.data.generated import write_generated
from quartet.apps.multimodal_ads.data.split import stratified_split
from quartet.apps.multimodal_ads.data.statistics import dataset_statistics, statistics_sections
from quartet.apps.multimodal_ads.data.table import AdRow, read_table
from quartet.apps.multimodal_ads.evaluation import CLASS_NAMES
from quartet.apps.multimodal_ads.frozen import picture_features, text_features
from quartet.apps.multimodal_ads.model.build import Parts, describe, describe_as_before, make_parts
from quartet.apps.multimodal_ads.model.classifier import AdClassifier, given
from quartet.apps.multimodal_ads.outputs import Inspector, write_outputs
from quartet.apps.multimodal_ads.task import AdTask, Objective
from quartet.apps.multimodal_ads.text.encoder import TextEncoder
from quartet.apps.multimodal_ads.text.ngrams import NgramEncoder, fit_ngrams
from quartet.apps.multimodal_ads.text.truncation import Truncation, truncation

_log = logging.getLogger(__name__)

_OUTPUTS = Path("outputs") / "multimodal_ads"


Splits = OfRun[AdRow]


def build(config: AdsConfig, world: World) -> TrainingSetup:
    """Data, model and task of a run.

    Raises:
        UserError: Data or weights are missing or cannot be used, or settings do not fit together.
    """
    splits = broadcast_object(load_splits(config) if world.is_main else None)
    parts = make_parts(config, device=world.device)
    sources = _sources(config, splits, parts, world=world)
    model, text_logits = _model(parts, splits.train, world=world, with_vision=not sources["train"].knows_pictures)
    cuts = _truncations(sources, parts) if world.is_main else {}
    cached = sources["train"].knows_pictures
    task = AdTask(
        model=model,
        objective=objective(config.train, splits.train),
        text_encoder=None if parts.text is None or sources["train"].knows_texts else parts.text,
        text_logits=text_logits,
        metadata=describe(config, parts),
        former_metadata=partial(describe_as_before, config, parts),
    )
    prepare = None if parts.vision is None or cached else Pixels(parts.vision.processor)
    datasets = {name: Data(dataset=source, prepare=prepare, collate=collate) for name, source in sources.items()}
    decider = Decider(config.decision, class_names=CLASS_NAMES, kind="binary", positive="ads")
    inspector = Inspector(splits.named(), decider=decider, max_pixels=_max_pixels(config))
    return TrainingSetup(
        task=task,
        train=datasets["train"],
        evaluation={name: data for name, data in datasets.items() if name != "train" or len(datasets) == 1},
        transform=_transform(config, parts),
        group_rules=_learning_rates(config, task),
        overview=partial(_overview, splits, cuts),
        analyse=inspector,
        interval=interval,
        finish=partial(write_outputs, inspector, config),
        warnings=[*splits.notes, *(f"{name}: {cut}" for name, cut in cuts.items() if cut.cut)],
        baselines=baselines(
            splits.named(),
            loss=task.objective,
            max_pixels=_max_pixels(config),
            texts=parts.text is not None,
            pictures=parts.vision is not None,
        ),
        held_out=_held_out(splits.test or (), config) if config.protocol.fold else (),
    )


def _held_out(rows: Sequence[AdRow], config: AdsConfig) -> list[Held]:
    """The rows of a fold: where each stands, and its picture."""
    first: dict[int, str] = {}
    found = []
    for row, group in zip(rows, _groups(rows, config), strict=True):
        unit = first.setdefault(group, str(row.image))
        height, width = image_size(row.image)
        about = {"text": "yes" if row.text else "no", "characters": len(row.text), "height": height, "width": width}
        found.append(Held(row.origin, unit, copies=unit, about={**about, **dict(row.more)}))
    return found


def _groups(rows: Sequence[AdRow], config: AdsConfig) -> Sequence[int]:
    """Group number of each row; equal pictures share one. Drawn pictures are all different."""
    if config.data.source == "generated":
        return range(len(rows))
    return picture_groups(rows, max_pixels=_max_pixels(config), cache=_fingerprints(config))


def interval(_: str, predictions: Predictions, metric: str) -> Interval:
    """The 95 % interval of the area under the ROC curve, of samples in the data's order."""
    if metric != "auroc":
        return Interval(math.nan, math.nan)
    return auroc_interval(predictions["label"], scores=predictions["logit"])


# ----------------------------------------------------------------------------------------------------------- the data


def load_splits(config: AdsConfig) -> Splits:
    """The rows that the data section names; pictures that are not known yet are read, to find equal ones.

    Raises:
        UserError: A table is missing or has mistakes, or pictures are in two splits.
    """
    settings = config.data
    if settings.source == "generated":
        rows = _generated(settings)
        splits = Splits(train=rows["train"], validation=rows["val"], test=rows["test"])
        return splits if config.protocol.fold is None else _member(splits, config)
    read = reader(settings)
    tables = {name: read(path) for name, path in _tables(settings).items()}
    if config.protocol.fold is None:
        rows = _complete(tables, config)
    else:
        whole = Splits(train=tables["train"], validation=tables.get("val", ()), test=tables.get("test"))
        rows = _member(whole, config).named()
    notes = check_duplicates(
        rows, allow=settings.allow_duplicates, max_pixels=_max_pixels(config), cache=_fingerprints(config)
    )
    for note in notes:
        _log.warning(note)
    _check_labels(rows["train"])
    return Splits(train=rows["train"], validation=rows.get("val", ()), test=rows.get("test"), notes=notes)


def reader(settings: DataConfig) -> Callable[[Path], list[AdRow]]:
    """Reads tables as a run does."""
    return partial(read_table, base_dir=settings.base_dir, encoding=settings.encoding, unmask=settings.unmask_text)


def _member(splits: Splits, config: AdsConfig) -> Splits:
    """The rows of a run of the protocol; equal pictures stay together."""
    pool = [*splits.train, *splits.validation]
    groups = _groups(pool, config)
    found = member_splits(
        OfRun(train=list(range(len(pool))), validation=(), test=None),
        config.protocol,
        label=lambda place: pool[place].label,
        unit=groups.__getitem__,
        classes=CLASS_NAMES,
        seed=config.data.split_seed,
        what="rows",
    )
    parts = {name: [pool[place] for place in places] for name, places in found.named().items()}
    return Splits(train=parts["train"], validation=parts.get("val", ()), test=parts.get("test", splits.test))


def _check_labels(rows: Sequence[AdRow]) -> None:
    labels = {row.label for row in rows}
    if len(labels) == 1:
        what = "an ad" if 1 in labels else "no ad"
        raise UserError(
            f"{rows[0].origin} and the other {len(rows) - 1} training rows: each is {what}. A classifier learns from "
            "both; add rows of the other kind (column label)"
        )


def samples(config: AdsConfig) -> dict[str, SampleSource]:
    """What `--check_data` opens: the pictures of all rows of the tables.

    Raises:
        UserError: A table is missing or has mistakes; they are all named.
    """
    settings = config.data
    if settings.source == "generated":
        rows = _generated(settings)
    else:
        read = reader(settings)
        rows = {name: read(path) for name, path in _tables(settings).items()}
    return {name: SampleSource(part, max_pixels=_max_pixels(config)) for name, part in rows.items()}


def _generated(settings: DataConfig) -> dict[str, Sequence[AdRow]]:
    folder = settings.generated_dir or _OUTPUTS / "generated"
    write_generated(folder, train=settings.num_train, validation=settings.num_val, test=settings.num_test, seed=0)
    return {name: read_table(folder / f"{name}.csv", base_dir=None) for name in ("train", "val", "test")}


def _tables(settings: DataConfig) -> dict[str, Path]:
    """The given tables; where the training table is not given, those of the usual names in `base_dir`, too."""
    given = {"train": settings.train_csv, "val": settings.val_csv, "test": settings.test_csv}
    if settings.train_csv is None:
        if settings.base_dir is None:
            raise UserError("no data chosen: give --train_csv, or --base_dir with a train.csv, or --demo for the demo")
        if not settings.base_dir.is_dir():
            raise UserError(
                f"{settings.base_dir}: no such folder (data.base_dir, or the environment variable DATA_DIR)"
            )
        found = {name: settings.base_dir / f"{name}.csv" for name in given}
        if not found["train"].is_file():
            raise UserError(f"{found['train']}: no such file; give --train_csv, or a --base_dir that holds a train.csv")
        given = {name: path or (found[name] if found[name].is_file() else None) for name, path in given.items()}
    return {name: path for name, path in given.items() if path is not None}


def _complete(tables: Mapping[str, Sequence[AdRow]], config: AdsConfig) -> dict[str, Sequence[AdRow]]:
    """Hold out what has no table of its own; equal pictures stay together."""
    rows, settings = dict(tables), config.data
    if "val" in rows:
        return rows
    groups = _groups(rows["train"], config)
    train, val, test = stratified_split(
        rows["train"],
        val_fraction=settings.val_fraction,
        test_fraction=0.0 if "test" in rows else settings.test_fraction,
        seed=settings.split_seed,
        groups=groups,
    )
    parts = {"train": train, "val": val, "test": test}
    _log.info("the training table is split: %s", ", ".join(f"{name} {len(part)}" for name, part in parts.items()))
    return {**{name: part for name, part in parts.items() if part}, **{k: v for k, v in rows.items() if k != "train"}}


def _max_pixels(config: AdsConfig) -> int:
    return round(config.data.max_megapixels * 1e6)


def _features(config: AdsConfig) -> Path | None:
    """Folder of what is computed once for all runs; None: nothing is kept."""
    return None if config.features.cache == "off" else config.features.cache_dir or _OUTPUTS / "features"


def _fingerprints(config: AdsConfig) -> Path | None:
    """File of what is known of the data set's pictures."""
    root, settings = _features(config), config.data
    dataset = settings.base_dir or _tables(settings)["train"].parent
    return None if root is None else cache_file(root / "fingerprints", dataset)


def _overview(splits: Splits, cuts: Mapping[str, Truncation], folder: Path) -> list[Section]:
    parts = {name: dataset_statistics(rows) for name, rows in splits.named().items()}
    sections = statistics_sections(parts, path=folder / "statistics.png")
    if cuts:
        columns = ["", "texts", "cut off", "tokens", "not read"]
        limit = next(iter(cuts.values())).limit
        note = "Empty texts do not count. " + (
            "All is read." if limit is None else f"{limit} tokens of a text are read."
        )
        sections.append(Table("Texts", columns, [[name, *cut.row] for name, cut in cuts.items()], note=note))
    return sections


def _truncations(sources: Mapping[str, SampleSource], parts: Parts) -> dict[str, Truncation]:
    """What the text encoder does not read of the splits' texts; empty without one."""
    if parts.text is None:
        return {}
    cuts = {name: truncation(source.count_tokens(parts.text), parts.text) for name, source in sources.items()}
    for name, cut in cuts.items():
        _log.log(logging.WARNING if cut.cut else logging.INFO, "%s: %s", name, cut)
    return cuts


def _sources(config: AdsConfig, splits: Splits, parts: Parts, *, world: World) -> dict[str, SampleSource]:
    """The splits' samples; features of frozen encoders are computed here where they are not known."""
    named = splits.named()
    pictures: dict[str, KnownFeatures] = {}
    texts: dict[str, KnownFeatures] = {}
    root = _features(config)
    if root is not None:
        if parts.vision is not None and parts.vision_is_frozen and config.augmentation.name == "none":
            pictures = picture_features(named, parts, config=config, root=root, world=world)
        if isinstance(parts.text, TextEncoder) and parts.text_network is None:
            texts = text_features(named, parts.text, settings=config.features, root=root, world=world)
    return {
        name: SampleSource(
            rows,
            max_pixels=_max_pixels(config),
            decode_side=config.data.decode_side,
            with_images=parts.vision is not None,
            pictures=pictures.get(name),
            texts=texts.get(name),
            with_texts=parts.text is not None,
            with_facts=parts.tells_facts,
        )
        for name, rows in named.items()
    }


def _transform(config: AdsConfig, parts: Parts) -> Transform | None:
    """How training samples vary."""
    steps: list[Transform] = []
    if config.augmentation.name != "none" and parts.vision is not None:
        steps.append(Augmentation(config.augmentation.name))
    if config.train.text_dropout and parts.vision is not None and parts.text is not None:
        steps.append(TextDropout(config.train.text_dropout))
    return InTurn(steps) if steps else None


# -------------------------------------------------------------------------------------------------------- the training


def _model(
    parts: Parts, train: Sequence[AdRow], *, world: World, with_vision: bool
) -> tuple[AdClassifier, Mapping[str, float]]:
    """The classifier, and where it embeds n-grams, fitted to the training texts, logits of these out of fold."""
    model = parts.classifier(with_vision=with_vision)
    if model.ngrams is None or not isinstance(parts.text, NgramEncoder):
        return model, {}
    start = None
    if world.is_main:
        start = fit_ngrams(parts.text, [row.text for row in train], [row.label for row in train])
    start = given(broadcast_object(start))
    model.ngrams.load_state_dict({**model.ngrams.state_dict(), **start.state})
    given(model.no_text).data[-1] = start.missing
    return model, start.logits


def objective(settings: AdsTrainConfig, train: Sequence[AdRow] | None) -> Objective:
    """The loss; where the training rows are not known, an automatic weight of the ads is left out."""
    weight = settings.pos_weight
    if weight == "auto":
        ads = sum(row.label for row in train or ())
        if train is not None and not ads:
            raise UserError("train.pos_weight=auto: there is no ad among the training rows")
        weight = None if train is None else (len(train) - ads) / ads
    return Objective(
        loss_type=settings.loss_type,
        focal_gamma=settings.focal_gamma,
        focal_alpha=settings.focal_alpha,
        pos_weight=weight,
        label_smoothing=settings.label_smoothing,
        align_weight=settings.align_weight,
        modality_loss=settings.modality_loss,
    )


def _learning_rates(config: AdsConfig, task: AdTask) -> list[GroupRule]:
    """Own rates of what trains in the encoders: layers of the backbone, or adapters."""
    model, settings = task.model, config.train
    adapters, rates = settings.lora_lr or settings.lr, dict[str, float]()
    if model.vision is not None and any(parameter.requires_grad for parameter in model.vision.parameters()):
        layers = settings.backbone_lr or settings.lr * (0.1 if config.vision_encoder.pretrained else 1.0)
        rates["vision."] = adapters if settings.lora.on_vision else layers
    if model.text is not None:
        rates["text."] = adapters
    return [GroupRule(prefix, rate) for prefix, rate in rates.items() if rate != settings.lr]
