"""What a user writes with every public name: checked by `mypy --strict`, and never run."""

import logging
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path

import timm
import torch
from timm.task import ClassificationTask
from transformers import Trainer, TrainingArguments

import hf_fingerprint
from hf_fingerprint import (
    BuildError,
    CarrierError,
    CheckpointError,
    CodeError,
    DeepMarksLoss,
    Evaluation,
    Fingerprint,
    FingerprintCallback,
    FingerprintConfig,
    FingerprintCriterion,
    FingerprintedModel,
    FingerprintError,
    FingerprintTask,
    FingerprintTrainer,
    FingerprintTrainerMixin,
    FingerprintWarning,
    HubError,
    IssuedCopy,
    Issuer,
    MissingExtraError,
    Outcome,
    PassphraseError,
    ProofCheck,
    PublishConfig,
    PublishedCopy,
    QueryResult,
    RecipientScore,
    StorageError,
    SuspectResult,
    TraceResult,
    Vault,
    VaultError,
    WatchResult,
    check_proof,
    evaluate,
    issue,
    make_trigger_set,
    push_to_hub,
    query,
    register,
    trace,
    trace_all,
    verify,
    watch,
)
from hf_fingerprint.blackbox import Labels, from_url, write_proof


logger = logging.getLogger(__name__)


def show(step: str, done: int, total: int | None) -> None:
    logger.info("%s: %d of %s", step, done, total)


def configure(folder: Path) -> tuple[FingerprintConfig, PublishConfig]:
    config = FingerprintConfig(max_kl=1e-3, coalition=3, carriers="compact", code="tardos", calibration=Path("photos"))
    path: Path = config.save_pretrained(folder)
    loaded: FingerprintConfig = FingerprintConfig.from_pretrained("org/settings", revision="v1", token=True)
    same: FingerprintConfig = FingerprintConfig.from_dict(loaded.to_dict())
    coalition: int | None = same.coalition
    publish = PublishConfig(private=True, gated="auto", disclose=coalition is None)
    publish.save_pretrained(path.parent)
    return config, PublishConfig.from_pretrained(folder, subfolder="hub", cache_dir=folder)


def make_copies(vault: Vault, config: FingerprintConfig, out: Path) -> list[IssuedCopy]:
    base = register("org/model", vault, config, show, revision="v1")
    print(base.base_id, base.certified, base.source)
    copy: IssuedCopy = issue("org/model", "alice", vault, out / "alice", progress=show, device="cpu")
    module: torch.nn.Module = issue(timm.create_model("resnet18"), "bob", vault, base="org/model")
    state: dict[str, torch.Tensor] = issue(module.state_dict(), "carol", vault)
    from_module: IssuedCopy = issue(module, "dora", vault, out / "dora")
    issue(state, "erin", vault, str(out / "erin"), as_base=True, cache_dir=out)
    with Issuer("org/model", vault, config, include_code=True, variant="fp16") as issuer:
        single: IssuedCopy = issuer.issue("frank", out / "frank")
        return [copy, from_module, single, *issuer.issue_all(["gina", "hugo"], out, show)]


def publish(vault: Vault, config: PublishConfig) -> str:
    published: PublishedCopy = push_to_hub(
        "org/model", "alice", "org/alice", vault, publish_config=config, token="hf_x"
    )
    return f"{published.repo}@{published.revision}"


def find_leaker(suspect: str | Path | torch.nn.Module | Mapping[str, torch.Tensor], vault: Vault) -> list[str]:
    result: TraceResult = trace(suspect, vault, full=True, max_bytes=10**9, all_scores=True, device="cuda")
    claim: TraceResult = verify(suspect, "alice", vault, progress=show)
    accused: tuple[RecipientScore, ...] = result.accused
    surest: float = min(score.log10_false_accusation for score in accused)
    print(result, repr(claim), surest, result.to_dict()["alpha"], result._repr_html_())
    if result.outcome is Outcome.ACCUSED:
        return [score.recipient for score in accused]
    return [] if result.reason is None else [result.reason]


def trace_list(suspects: list[Path], vault: Vault) -> dict[str, tuple[str, ...]]:
    results: list[SuspectResult] = list(trace_all(suspects, vault, out="results", progress=show))
    return {each.suspect: each.accused for each in results if each.error is None}


def watch_authors(vault: Vault) -> None:
    found: WatchResult
    for found in watch(["org", "other/model"], vault, datetime.now(UTC), token=False):
        print(found.model, found.accused, found.expected, found.to_dict())


def query_service(vault: Vault, folder: Path) -> bool:
    triggers = make_trigger_set("org/model", vault, "photos", count=40, progress=show)
    print(triggers.count, triggers.decoys)
    suspect = from_url("https://models.example/classify", Labels(["cat", "dog"]))
    result: QueryResult = query(suspect, vault, transcript=folder / "transcript", budget=50)
    for path in write_proof(folder / "proof.json", folder / "transcript", result, vault):
        check: ProofCheck = check_proof(path, ["00" * 32])
        print(check, check.outcome, check.accusations[0].holds, check.to_dict())
    return bool(result.accused)


def measure(out: Path) -> float:
    evaluation: Evaluation = evaluate("org/model", "photos", out, attacks=["prune"], coalitions=[3], progress=show)
    print(evaluation, evaluation.to_dict())
    return evaluation.copy.accuracy


def train_by_hand(fingerprint: Fingerprint, model: torch.nn.Module, batches: list[torch.Tensor]) -> float:
    deepmarks = DeepMarksLoss(model, fingerprint, strength=0.1)
    optimizer = torch.optim.AdamW(model.parameters())
    for images in batches:
        loss: torch.Tensor = model(images).mean() + deepmarks()
        torch.autograd.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
    metrics: dict[str, float] = deepmarks.metrics
    return metrics["fingerprint_agreement"]


class OwnTrainer(FingerprintTrainerMixin, Trainer):
    pass


def train_with_trainer(model: torch.nn.Module, arguments: TrainingArguments, vault: Vault) -> None:
    fingerprint = Fingerprint("org/model", "alice", vault, FingerprintConfig(amplitude=0.01))
    Trainer(model=model, args=arguments, callbacks=[FingerprintCallback(fingerprint, strength=0.1)]).train()
    for kind in (OwnTrainer, FingerprintTrainer):
        trainer = kind(model=model, args=arguments, fingerprint=fingerprint)
        trainer.train()
    recorded = fingerprint.record("trained")
    if recorded is not None:
        print(recorded.score, recorded.agreement, recorded.to_dict())


def train_with_timm(fingerprint: Fingerprint, images: torch.Tensor, labels: torch.Tensor) -> torch.nn.Module:
    model = FingerprintedModel(timm.create_model("resnet18"), fingerprint, strength=0.1)
    criterion: Callable[..., torch.Tensor] = FingerprintCriterion(torch.nn.CrossEntropyLoss(), model.deepmarks)
    torch.autograd.backward(criterion(model(images), labels))
    task = FingerprintTask(ClassificationTask(model, torch.nn.CrossEntropyLoss()), model.deepmarks)
    results: dict[str, torch.Tensor] = task(images, labels)
    torch.autograd.backward(results["loss"])
    return model.export()


def main(folder: Path, passphrase: str) -> int:
    print(hf_fingerprint.__version__)
    config, publish_config = configure(folder)
    Vault.create(folder / "vault", passphrase)
    try:
        with Vault(folder / "vault") as vault:
            copies = make_copies(vault, config, folder)
            print(copies[0].to_dict(), publish(vault, publish_config))
            vault.unlock(passphrase)
            print(find_leaker(copies[0].path, vault), vault.unlocked)
            vault.lock()
    except (BuildError, CarrierError, CheckpointError, CodeError) as error:
        print(f"the model: {error}")
    except PassphraseError:
        print("the passphrase")
    except (StorageError, VaultError, HubError) as error:
        print(f"the vault or the Hub: {error}")
    except (MissingExtraError, FingerprintWarning, FingerprintError) as error:
        print(error)
        return 1
    return 0
