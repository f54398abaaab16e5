"""Weir's transaction and decision as Pydantic models with the same rules: what the usual Python service is made of."""

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from features.transaction import AMOUNT_MAX, ID_LENGTH_MAX, TS_MAX, TS_SECONDS_MAX


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("holds characters that cannot be printed")
    return text


Id = Annotated[str, Field(min_length=1, max_length=ID_LENGTH_MAX), AfterValidator(_printable)]


class Tx(BaseModel):
    """A payment event, with the limits of features/transaction.py."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    event_id: Id
    ts: Annotated[int, Field(ge=TS_SECONDS_MAX, le=TS_MAX)]
    amount: Annotated[int, Field(ge=0, le=AMOUNT_MAX)]
    currency: Annotated[str, Field(pattern="^[A-Z]{3}$")]
    card_id: Id
    merchant_id: Id
    device_id: Id | None = None
    ip: Id | None = None
    country: Annotated[str, Field(pattern="^[A-Z]{2}$")] | None = None
    mcc: Annotated[int, Field(ge=0, le=9999)] | None = None
    channel: Literal["ecom", "pos", "atm", "moto", "other"] | None = None
    lat: Annotated[float, Field(ge=-90, le=90)] | None = None
    lon: Annotated[float, Field(ge=-180, le=180)] | None = None

    @model_validator(mode="after")
    def _together(self) -> "Tx":
        if (self.lat is None) != (self.lon is None):
            raise ValueError("lat and lon must be given together")
        return self


class Decision(BaseModel):
    """The reply, with the fields of Weir's."""

    event_id: str
    score: float
    outcome: str
    model: str
    scorer: str
    lsn: int
    replayed: bool
    degraded: list[str]
