"""`Section`: the base of every configuration model, and `field`, which gives each value its meaning and unit.

Example:
    class TrainConfig(Section):
        lr: float = field(1e-3, "Peak learning rate", gt=0, aliases=("learning_rate",))
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NoReturn

from pydantic import BaseModel, ConfigDict, Field
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError, PydanticUndefined

Outcome = Literal["applied", "reset", "refused"]

BEST = "the best value and the patience"
"""What a run that is to be judged in another way resets."""


class Section(BaseModel):
    """A frozen, validated group of settings; unknown keys are errors.

    Attributes:
        hoisted: Names of nested mappings whose keys may also be written directly in the section. `params: {T_max: 10}`
            then means `T_max: 10`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)
    hoisted: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def meaning(cls) -> str:
        """What it is about: the first line of its docstring."""
        return (cls.__doc__ or "").strip().partition("\n")[0]


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
        turns_on: A word that may stand in place of the value, and a field of the section that it turns on; the value
            stays what lower-ranking sources say.
        describes: Another field of the section that the value is about. What a preset says here is dropped where a
            higher-ranking source gives that field; what the user says here stays.
        continued: What a run that goes on does with another value than it had. "applied": it goes on with the new one;
            "reset": likewise, and what `resets` names begins anew, which the log says; "refused": it does not go on.
        resets: What begins anew, in words; `BEST` does.
    """

    unit: str = ""
    aliases: tuple[str, ...] = ()
    env: str | None = None
    bare: str | None = None
    selects: bool = False
    turns_on: tuple[str, str] | None = None
    describes: str | None = None
    continued: Outcome = "refused"
    resets: str = ""


def field(default: Any = PydanticUndefined, description: str = "", **options: Any) -> Any:
    """Declare a field of a `Section`.

    Args:
        default: Default value; leave it out for a field that the user must give.
        description: What the value means, one sentence without a full stop.
        **options: Attributes of `Meta`, and pydantic constraints such as ge, gt, le, lt, min_length, pattern. A field
            that declares no `continued` is refused to a run that goes on.

    Returns:
        A pydantic field (typed `Any`, so that it can stand as a default of any type).
    """
    meta = Meta(**{name: options.pop(name) for name in Meta.__annotations__ if name in options})
    info: FieldInfo = Field(
        default, description=description, json_schema_extra={"unit": meta.unit} if meta.unit else None, **options
    )
    info.metadata.append(meta)
    return info


def reject(key: str, problem: str) -> NoReturn:
    """Refuse the value of `key` from a model validator, so that the error is shown where that key was given.

    Args:
        key: Field of the section being validated.
        problem: What is wrong and what is expected.
    """
    # Braces would be read as placeholders of pydantic's message template.
    raise PydanticCustomError("rejected", "{problem}", {"key": key, "problem": problem})
