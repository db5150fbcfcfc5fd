"""A recipe takes the values of its algorithm when it is made."""

from __future__ import annotations

from dataclasses import asdict, replace

import pytest
from pydantic import TypeAdapter

from threegates.errors import RecipeError
from threegates.lab import trainers
from threegates.lab.algorithms.table import ALGORITHMS, algorithm
from threegates.lab.recipe import AdapterRLRecipe, AnyRecipe, EncoderRLRecipe, RLRecipe

GIVEN = {"name": "r", "base": "b", "data": "arith-4", "seed": 1, "steps": 2, "learning_rate": 1e-3}
READ = TypeAdapter(AnyRecipe).validate_python


@pytest.mark.parametrize("name", sorted(ALGORITHMS))
def test_the_values_are_those_of_the_name_where_none_are_given(name):
    assert RLRecipe(algorithm=name, **GIVEN).objective == algorithm(name)


def test_the_encoders_recipe_has_them_too():
    assert EncoderRLRecipe(**GIVEN).objective == algorithm("grpo")


def test_a_recipe_that_was_written_without_them_reads_as_it_was_meant():
    recipe = RLRecipe(algorithm="dapo", **GIVEN)
    told = recipe.model_dump(mode="json")
    assert told["objective"] == asdict(algorithm("dapo"))
    assert READ(told) == recipe
    told.pop("objective")
    assert READ(told) == recipe


def test_given_values_are_kept():
    other = replace(algorithm("grpo"), clip_high=0.3)
    recipe = RLRecipe(algorithm="grpo", objective=other, **GIVEN)
    assert READ(recipe.model_dump(mode="json")).objective == other


def test_an_unknown_algorithm_is_refused_when_the_recipe_is_made():
    with pytest.raises(RecipeError, match="no algorithm 'ppo'"):
        RLRecipe(algorithm="ppo", **GIVEN)


def test_an_algorithm_with_a_trainer_of_its_own_trains_whole_models_alone(monkeypatch):
    """The trainer of adapters would train its own objective under the algorithm's name."""
    monkeypatch.setattr(trainers, "own_trainer", lambda name: ("threegates.lab.rl", "PolicyTrainer"))
    assert trainers.sort_of(RLRecipe(algorithm="grpo", **GIVEN)) == "rl:grpo"
    with pytest.raises(RecipeError, match="brings a trainer of its own"):
        trainers.sort_of(AdapterRLRecipe(algorithm="grpo", init="lora", **GIVEN))
