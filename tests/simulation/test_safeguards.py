"""Each safeguard is taken out once, and the simulator must miss it.

These are the tests of the simulator itself: an invariant that nothing can break proves nothing.
Typically the first failing seed is one of the first ten; the bound is for the rarest.
"""

from __future__ import annotations

import pytest
from safeguards import SAFEGUARDS

from coterie.nodes.simulator import Failed, Options, simulate

SEEDS = range(1, 401)


@pytest.mark.parametrize("name", SAFEGUARDS)
def test_a_missing_safeguard_is_seen(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    remove, faults = SAFEGUARDS[name]
    remove(monkeypatch)
    options = Options(faults=faults)
    for seed in SEEDS:
        try:
            simulate(seed, options)
        except Failed as failed:
            assert f"coterie simulate --seed {seed}{options.arguments()}" in str(failed)
            return
    pytest.fail(f"{len(SEEDS)} worlds went well without the rule: {remove.__doc__}")
