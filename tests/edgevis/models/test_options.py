"""Every option of every model and every value of every recipe says what it allows; a new one is tested unasked."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch

from edgevis import models
from edgevis.models.allowed import number, one_of, or_null, several, whole
from edgevis.models.recipe import Recipe
from runtime.errors import InputError, ModelError

pytestmark = pytest.mark.torch

BAD = ["abc", "", 1.5, True, None, -1, 10**12, 10**400, float("nan"), float("inf"), [], [1, "a"], [1, 1], {}, {"a": 1}]
TEXTS = {"labels"}
"""Options that are text: names of the user's choice, of which one of BAD may be."""
RECIPES: dict[type[Recipe], Recipe] = {
    type(recipe): recipe for name in models.names() for recipe in models.entry(name).recipes.values()
}


@pytest.mark.parametrize("name", models.names())
def test_options_of_models(name: str) -> None:
    entry = models.entry(name)
    for option in inspect.signature(entry.build).parameters:
        for value in [value for value in BAD if option not in TEXTS or not isinstance(value, str)]:
            with torch.device("meta"), pytest.raises(ModelError) as caught:
                models.module_from(entry, {option: value})
            message = str(caught.value)
            assert message.startswith(f"{option} is "), message
            assert "; allowed: " in message
            assert "\n" not in message


@pytest.mark.parametrize("kind", RECIPES, ids=lambda kind: kind.__name__)
def test_values_of_recipes(kind: type[Recipe]) -> None:
    recipe = RECIPES[kind]
    for name, allowed in kind.allowed().items():
        assert allowed.holds(getattr(recipe, name))
        for value in BAD:
            if not allowed.holds(value):
                with pytest.raises(InputError) as caught:
                    recipe.with_values({name: value})
                assert str(caught.value).startswith(f"recipe: {name} is ")
                assert str(caught.value).endswith(f"; allowed: {allowed.text}")
        taken = [value for value in BAD if allowed.holds(value)]
        assert len(taken) <= 3, f"{name} takes {taken}"


def test_a_recipe_takes_what_its_texts_say() -> None:
    recipe = models.entry("hsnet-hm").recipes["small"]
    assert recipe.with_values({"fold": None, "test_shots": [1, 5], "learning_rate": 1}).learning_rate == 1.0
    with pytest.raises(InputError, match="fold is 4; allowed: a whole number from 0 to 3, or null"):
        recipe.with_values({"fold": 4})
    with pytest.raises(InputError, match=r"milestones is .*; allowed: a list, each a whole number .*, rising"):
        recipe.with_values({"milestones": [3, 2]})


@pytest.mark.parametrize(
    ("allowed", "good", "bad", "text"),
    [
        (whole(2), [2, 10**30], [1, 2.0, True, "2", None], "a whole number of 2 or more"),
        (whole(33, 97, multiple=32), [33, 65, 97], [32, 64, 129], "multiples of 32 from 33 to 97"),
        (number(0, 1), [0, 0.5, 1], [-0.1, 1.1, True, "0"], "a number from 0 to 1"),
        (number(0, 1, above=True, below=True), [0.5], [0, 1], "a number above 0 to below 1"),
        (number(0), [0, 10**300], [10**400, float("inf"), -1], "a number of 0 or more"),
        (one_of(1, None, "a"), [1, None, "a"], [True, 1.0, "b", []], "1, null, a"),
        (several(whole(1)), [[1], (1, 2)], [[], 1, [0], "1"], "a list of 1 or more, each a whole number of 1 or more"),
        (or_null(whole(1)), [None, 1], [0, "null"], "a whole number of 1 or more, or null"),
    ],
)
def test_what_is_allowed(allowed: Any, good: list[Any], bad: list[Any], text: str) -> None:
    assert allowed.text == text
    assert all(map(allowed.holds, good))
    assert not any(map(allowed.holds, bad))
