"""Recipes are checked whole before any work."""

import re
from pathlib import Path

import pytest

from steerkit.exceptions import RecipeError
from steerkit.recipe import Recipe, load_recipe, output_name

RECIPES = Path(__file__).parents[1] / "recipes"
SMALL = 'name: small\nsweep: {prompts: ["What is it?", "Why?"]}\n'


@pytest.mark.parametrize("name", [path.name for path in RECIPES.glob("*.yaml")])
def test_shipped_recipes_open_with_their_command_and_are_valid(name: str) -> None:
    assert (RECIPES / name).read_text().startswith(f"# steerkit run recipes/{name}\n")
    assert load_recipe(RECIPES / name).name == Path(name).stem


def test_the_article_is_one_of_them() -> None:
    recipe = load_recipe(RECIPES / "gemma-3-1b-it.yaml")
    assert (recipe.model.name, recipe.estimator.layer) == ("google/gemma-3-1b-it", 13)
    assert sorted({0, *(recipe.sweep.alphas or [])}) == pytest.approx([0.035 * step for step in range(-4, 5)])


def test_settings_change_keys_in_place(tmp_path: Path) -> None:
    path = tmp_path / "small.yaml"
    path.write_text(SMALL)
    recipe = load_recipe(path, ["sweep.alphas=[-0.1, 0, 0.1]", "estimator.learner=mean-diff", "track=false"])
    assert recipe.sweep.alphas == [-0.1, 0.0, 0.1]
    assert (recipe.estimator.learner, recipe.track) == ("mean-diff", False)
    assert recipe.sweep.prompts == ["What is it?", "Why?"]


def test_variants_of_a_recipe_lie_side_by_side(tmp_path: Path) -> None:
    path = tmp_path / "small.yaml"
    path.write_text(SMALL)
    recipe = load_recipe(path)
    assert output_name(recipe) == output_name(recipe, ["track=false"]) == "small"
    assert output_name(recipe, ["estimator.learner=mean-diff"]) == "small-learner-mean-diff"
    alike = [["sweep.alphas=[-0.1, 0.1]"], ["sweep.alphas=[0.1, 0.1]"], ["model.name=a/b"], ["model.name=a//b"]]
    names = [output_name(recipe, settings) for settings in alike]
    assert len(set(names)) == 4
    assert all(re.fullmatch(r"small-[\w.+-]+-[0-9a-f]{8}", name) for name in names)
    assert len(output_name(recipe, [f"show={'why ' * 100}"])) < 60


def test_data_files_are_found_beside_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "mine.csv").write_text("text,label\na,novice\nb,expert\n")
    (tmp_path / "small.yaml").write_text(SMALL + "data: {train: mine.csv}\n")
    assert load_recipe(tmp_path / "small.yaml").data.train == str((tmp_path / "mine.csv").resolve())


@pytest.mark.parametrize(
    ("more", "settings", "expected"),
    [
        ("models: {}", [], "models is no key of a recipe; the keys there are name, model, data, estimator, sweep, "),
        (
            "estimator: {lerner: probe}",
            [],
            "estimator.lerner is no key of a recipe; the keys there are learner, layers,",
        ),
        (
            "calibration: {preservation: much}",
            [],
            "calibration.preservation: input should be a valid number, unable to parse string as a number",
        ),
        (
            "calibration: {preservation: 2}",
            [],
            "calibration.preservation: input should be less than or equal to 1, got 2",
        ),
        ("", ["sweep.alphas=[.nan]"], "sweep.alphas.0: input should be a finite number, got nan"),
        ("", ["sweep.max_new_tokens=0"], "sweep.max_new_tokens: input should be greater than or equal to 1, got 0"),
        ("", ["sweep.prompts=[]"], "sweep.prompts: list should have at least 2 items after validation, not 0, got []"),
        ("", ["show=''"], "show: value error, text is empty, got ''"),
        ("", ["sweep.prompts=[a, a]"], "sweep.prompts: value error, a prompt occurs twice, got ['a', 'a']"),
        ("", ["estimator.learner"], "--set estimator.learner has no '='; pass it as key=value, such as"),
        ("", ["name.of=x"], "--set name.of=x: name is no section of the recipe;"),
        ("data: {train: gone.csv}", [], "gone.csv, named in "),
        (
            "data: {train: 'expertise:dev'}",
            [],
            "pass an existing CSV or JSONL file, or expertise:train, expertise:test,",
        ),
        (
            "references: {What is it: {novice: A lump of ice.}}",
            [],
            "value error, references of 'What is it' are for ['novice'], for ['novice', 'expert'] were expected",
        ),
        ("a: [", [], "is no readable YAML"),
    ],
)
def test_bad_recipes_are_refused(tmp_path: Path, more: str, settings: list[str], expected: str) -> None:
    path = tmp_path / "small.yaml"
    path.write_text(SMALL + more)
    with pytest.raises(RecipeError, match=re.escape(expected)):
        load_recipe(path, settings)


def test_all_problems_are_named_at_once(tmp_path: Path) -> None:
    path = tmp_path / "small.yaml"
    path.write_text("sweep: {alphas: high}\nnam: x\n")
    with pytest.raises(RecipeError) as error:
        load_recipe(path)
    for part in (
        "name: field required",
        "sweep.prompts: field required",
        "sweep.alphas: input should",
        "nam is no key",
    ):
        assert part in str(error.value)


def test_missing_and_empty_recipes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=re.escape("no.yaml does not exist; pass the path of a recipe such as")):
        load_recipe(tmp_path / "no.yaml")
    (tmp_path / "empty.yaml").write_text("")
    with pytest.raises(
        RecipeError, match=re.escape("holds a NoneType, a mapping was expected; start with `name: ...`.")
    ):
        load_recipe(tmp_path / "empty.yaml")


def test_a_recipe_is_frozen(tmp_path: Path) -> None:
    recipe = Recipe.model_validate({"name": "x", "sweep": {"prompts": ["a", "b"]}})
    with pytest.raises(ValueError, match="frozen"):
        recipe.name = "y"  # type: ignore[misc]
