"""Which models were chosen while the service ran: a small file that outlives restarts and comes before the setting `model`."""

from pathlib import Path
from typing import Final

import msgspec

from models.card import ARTIFACTS, ModelCard, load_card
from models.registry import Registry
from models.scorer import ModelError
from service.durable_file import replace_file
from service.errors import StartError
from service.settings import Settings

MODELS_FILE: Final = "models.json"


class Chosen(msgspec.Struct, frozen=True):
    """A model by what decisions call it, and the digest of its file."""

    model: str
    sha256: str


class ModelState(msgspec.Struct, frozen=True):
    """champion None: as the settings say. previous: the champion before it, for a rollback."""

    champion: Chosen | None = None
    previous: Chosen | None = None
    challenger: Chosen | None = None


def read_state(data_dir: Path) -> ModelState:
    """What was chosen last. Raises StartError."""
    path = data_dir / MODELS_FILE
    try:
        return msgspec.json.decode(path.read_bytes(), type=ModelState)
    except (FileNotFoundError, NotADirectoryError):  # whether the directory can be used is for DataDir to say
        return ModelState()
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise StartError(f"{path}: not readable: {error}; remove it to go back to the settings") from None


def write_state(data_dir: Path, state: ModelState) -> None:
    """Durably. Raises OSError."""
    replace_file(data_dir / MODELS_FILE, msgspec.json.encode(state))


def chosen(card: ModelCard) -> Chosen:
    """The model of a card."""
    return Chosen(card.model, card.sha256)


def find_champion(settings: Settings, registry: Registry, spec_name: str) -> tuple[Path, ModelCard]:
    """Directory and card of the model to start with. Raises ModelError, StartError."""
    champion = read_state(settings.data_dir).champion
    if champion is None:
        directory = settings.model or ARTIFACTS / spec_name
        if settings.model is None and not directory.is_dir():
            raise ModelError(f"no model comes with spec {spec_name!r}: train one (weir train) and give --set model=DIR")
        return directory, load_card(directory)
    path = settings.data_dir / MODELS_FILE
    try:
        directory, card = registry.find(champion.model)
    except KeyError:
        raise StartError(
            f"{path}: {champion.model} was made champion and is in no registry now; put it back into"
            f" {settings.data_dir / 'models'}, or remove {MODELS_FILE} to go back to the settings"
        ) from None
    except ModelError as error:
        raise StartError(f"{path}: {champion.model} was made champion and cannot be used: {error}") from None
    if card.sha256 != champion.sha256:
        raise StartError(f"{path}: {champion.model} is another file now: sha256 {card.sha256[:12]}, not {champion.sha256[:12]}")
    return directory, card
