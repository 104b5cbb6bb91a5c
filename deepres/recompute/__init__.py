"""Plans of recomputation: costs, the optimal plan for a byte budget, and its exact execution."""

from deepres.recompute.chain import Chain, Retention, UnitCost
from deepres.recompute.executor import apply_plan
from deepres.recompute.plan import (
    Plan,
    PricedPlan,
    keep_all_plan,
    per_unit_plan,
    sqrt_plan,
    uniform_plan,
)
from deepres.recompute.planner import InfeasibleBudgetError, make_plan, smallest_budget
from deepres.recompute.retaining_unit import RetainingUnit
from deepres.recompute.simulate import Simulation, price, simulate

__all__ = [
    "Chain",
    "InfeasibleBudgetError",
    "Plan",
    "PricedPlan",
    "RetainingUnit",
    "Retention",
    "Simulation",
    "UnitCost",
    "apply_plan",
    "keep_all_plan",
    "make_plan",
    "per_unit_plan",
    "price",
    "simulate",
    "smallest_budget",
    "sqrt_plan",
    "uniform_plan",
]
