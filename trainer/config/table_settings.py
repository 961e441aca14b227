"""Settings of how a table of series is read: its columns, its numbers and its times."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import Field, ValidationError, model_validator

from model.config import Section
from model.errors import UserError
from model.sentences import nearest
from model.validation import mistake

NO_TIME = "none"
"""Value of time_column for a table whose rows are only numbered."""

FILE_NAMES = "file"
"""Value of id_column for files that are a series each."""
NO_ID = "none"
"""Value of id_column for a table that is one series, whatever its columns are called."""

Names = Annotated[list[str], Field(min_length=1)]


class TableConfig(Section):
    """How a table of series is read."""

    targets: Names | None = None
    """Columns to forecast. Default: every column of measurements that has no other role."""
    covariates: list[str] = []
    """Columns known in advance (holidays, prices): the network sees their future, too."""
    past_covariates: list[str] = []
    """Columns that help, but are known only up to the present: model.channels grouped and mixed
    read them."""
    static: list[str] = []
    """Columns that are constant in each series: numbers, or texts, which are categories."""
    time_column: str | None = None
    """Column of times, or `none`. Default: one that is called so (time, date, ds, ...), else the
    first that holds times."""
    id_column: str | Names | None = None
    """Column that names the series of a long table, or columns that do so together. Default: one
    that is called so (unique_id, item_id, ...) or that the times need; else one series. `file`
    names them by their files, and `none` says that all rows are of one."""
    timezone: str | None = None
    """Time zone of the series, e.g. Australia/Melbourne. Times without an offset are local times
    there; those with one are converted to it for the calendar. Default: times as they stand."""
    date_format: str | None = None
    """How times are written, by strptime's codes, e.g. %d/%m/%Y. Default: found by their look."""
    time_unit: Literal["s", "ms", "us", "ns"] | None = None
    """Unit of times that are numbers since 1970. Default: told by their size."""
    freq: str | None = None
    """Interval of series that do not say theirs, such as those of one row, as an offset of pandas:
    30min, h, D, W, MS."""
    decimal: Literal[".", ","] | None = None
    """Decimal mark. Default: found by the numbers' look."""
    missing: list[str | float] = []
    """Further texts and numbers that stand for a missing value, such as -9999."""
    separator: Annotated[str, Field(min_length=1, max_length=1)] | None = None
    """What divides the cells of a line of text. Default: comma, semicolon, tab or bar, whichever
    divides the lines alike."""
    encoding: str | None = None
    """Encoding of text files, e.g. cp1252. Default: UTF-8, or what the file's first bytes say."""
    skip_rows: int | list[int] = 0
    """Lines before a text's header to leave out, or the numbers of the lines."""
    on_error: Literal["refuse", "skip"] = "refuse"
    """What happens to cells, rows and series that cannot be read: the table is refused, naming the
    first, or they are left out and counted."""

    @model_validator(mode="after")
    def _columns_have_one_part(self) -> TableConfig:
        for key in ("targets", "covariates", "past_covariates", "static"):
            names = getattr(self, key) or []
            twice = [name for name in names if names.count(name) > 1]
            if twice:
                raise ValueError(f"{key}: {twice[0]} stands twice")
        both = set(self.targets or []) & set(self.covariates)
        if both:
            raise ValueError(
                f"covariates: {min(both)} is a target; what is forecast cannot be known in advance"
            )
        taken: dict[str, str] = {}
        for key in ("targets", "covariates", "past_covariates", "static"):
            for name in getattr(self, key) or []:
                if name in taken:
                    raise ValueError(
                        f"{key}: {name} stands in {taken[name]}, too; leave it in one of them"
                    )
                taken[name] = key
        return self

    @model_validator(mode="after")
    def _timezone_exists(self) -> TableConfig:
        try:
            ZoneInfo("UTC" if self.timezone is None else self.timezone)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise ValueError(
                f"timezone: there is no {self.timezone!r}; "
                "it is named like Australia/Melbourne or UTC"
            ) from None
        return self


def checked_table(given: Mapping[str, Any]) -> TableConfig:
    """Return settings of how tables are read. Raises UserError for one that is wrong."""
    try:
        return TableConfig.model_validate(given)
    except ValidationError as error:
        path, sentence = mistake(error)
        key = ".".join(path)
        if sentence is None:
            near = nearest(key, TableConfig.model_fields)
            hint = f"; did you mean data.{near}?" if near else ""
            sentence = f"is no setting of how tables are read{hint}"
        raise UserError(f"data.{key}: {sentence}") from None
