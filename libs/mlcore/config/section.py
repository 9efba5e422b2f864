"""`Section`: the base of every configuration model, and `field`, which gives each value its meaning and unit.

Example:
    class TrainConfig(Section):
        lr: float = field(1e-3, "Peak learning rate", gt=0, aliases=("learning_rate",))
"""

from dataclasses import dataclass
from typing import Any, ClassVar, NoReturn

from pydantic import BaseModel, ConfigDict, Field
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError, PydanticUndefined


class Section(BaseModel):
    """A frozen, validated group of settings; unknown keys are errors.

    Attributes:
        hoisted: Names of nested mappings whose keys may also be written directly in the section. `params: {T_max: 10}`
            then means `T_max: 10`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)
    hoisted: ClassVar[tuple[str, ...]] = ()


@dataclass(frozen=True, kw_only=True)
class Meta:
    """What the command line and the composition know about a field beyond its type.

    Attributes:
        unit: Unit of the value, e.g. "epochs" or "mm"; empty for pure numbers and names.
        aliases: Other names. One that equals the field's own name claims the short name where several sections have it;
            one with a dot is a full path.
        env: Environment variable that gives the value, ranked just below the command line.
        bare: Text that the flag stands for when it is given without a value.
        selects: Choosing another value of this field from a higher-ranking source drops what lower-ranking sources said
            about the rest of the section for the previous choice.
        describes: Another field of the section that the value is about. What a preset says here is dropped where a
            higher-ranking source gives that field; what the user says here stays.
    """

    unit: str = ""
    aliases: tuple[str, ...] = ()
    env: str | None = None
    bare: str | None = None
    selects: bool = False
    describes: str | None = None


_NO_META = Meta()


def field(
    default: Any = PydanticUndefined,
    description: str = "",
    *,
    unit: str = "",
    aliases: tuple[str, ...] = (),
    env: str | None = None,
    bare: str | None = None,
    selects: bool = False,
    describes: str | None = None,
    **constraints: Any,
) -> Any:
    """Declare a field of a `Section`.

    Args:
        default: Default value; leave it out for a field that the user must give.
        description: What the value means, one sentence without a full stop.
        unit: See `Meta`, as are `aliases`, `env`, `bare`, `selects` and `describes`.
        aliases: Other names of the field.
        env: Environment variable behind the field.
        bare: Value of the flag when given alone.
        selects: Whether this field chooses what the rest of its section means.
        describes: The field of its section that this one is about.
        **constraints: pydantic constraints such as ge, gt, le, lt, min_length, pattern.

    Returns:
        A pydantic field (typed `Any`, so that it can stand as a default of any type).
    """
    meta = Meta(unit=unit, aliases=aliases, env=env, bare=bare, selects=selects, describes=describes)
    info: FieldInfo = Field(default, description=description, json_schema_extra={"unit": unit}, **constraints)
    info.metadata.append(meta)
    return info


def meta_of(info: FieldInfo) -> Meta:
    """The `Meta` of a field; fields declared without `field` have an empty one."""
    return next((item for item in info.metadata if isinstance(item, Meta)), _NO_META)


def reject(key: str, problem: str) -> NoReturn:
    """Refuse the value of `key` from a model validator, so that the error is shown where that key was given.

    Args:
        key: Field of the section being validated.
        problem: What is wrong and what is expected.
    """
    # Braces would be read as placeholders of pydantic's message template.
    raise PydanticCustomError("rejected", "{problem}", {"key": key, "problem": problem})
