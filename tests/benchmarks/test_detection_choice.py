from benchmarks.detection_study import choice


def test_the_recipe_has_what_validation_chose(capsys):
    choice.main([])
    said = {line[:26].strip() + "|" + line[27:41].strip(): line[42:] for line in _lines(capsys)}
    found = {name: float(figures.split()[2]) for name, figures in said.items()}
    for name in ("mvtec_pill", "magnetic_tile"):
        chosen, plain = found[f"224, a fifth closer|{name}"], found[f"224|{name}"]
        assert chosen > plain
    assert found["heads 10 known, w 0.5|magnetic_tile"] < found["224|magnetic_tile"]


def test_the_test_is_of_the_choice_alone(capsys):
    choice.main(["--test"])
    lines = _lines(capsys)
    assert len(lines) == 5
    assert all(line.startswith("224, a fifth closer") for line in lines)


def _lines(capsys):
    return capsys.readouterr().out.splitlines()[1:]
