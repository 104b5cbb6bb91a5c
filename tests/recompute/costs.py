"""Costs where a test does not mind which."""

from deepres.recompute.chain import Chain, Retention, UnitCost

RETENTION = Retention("all", 3)
UNIT = UnitCost(1.0, 2.0, 1, (RETENTION,))
CHAIN = Chain(1, (UNIT,))
