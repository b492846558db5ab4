//! Shrinking: delta debugging (Zeller, Hildebrandt 2002) over operations and fault windows. Because randomness is keyed and times are
//! absolute, a plan without a part is the same run without that part. Never accepts a plan that breaks another rule.

use crate::plan::Plan;

/// The most runs that shrinking one plan may cost.
const RUNS_MAX: u32 = 3_000;

/// A plan with only some of its parts: places below the number of operations are operations, the others fault windows.
fn with_parts(plan: &Plan, parts: &[usize]) -> Plan {
    let operation_count = plan.operations.len();
    let operations = parts.iter().filter(|part| **part < operation_count).map(|part| plan.operations[*part].clone()).collect();
    let faults = parts.iter().filter_map(|part| part.checked_sub(operation_count)).map(|place| plan.faults[place]).collect();
    Plan { operations, faults, ..plan.clone() }
}

/// The smallest plan found that `still_fails`, and how many runs it took.
pub fn shrink(plan: &Plan, mut still_fails: impl FnMut(&Plan) -> bool) -> (Plan, u32) {
    let mut parts: Vec<usize> = (0..plan.size()).collect();
    let mut runs = 0;
    let mut chunk = parts.len().div_ceil(2);
    while chunk > 0 && runs < RUNS_MAX {
        let mut shrunk = false;
        let mut from = 0;
        while from < parts.len() && runs < RUNS_MAX {
            let without: Vec<usize> =
                parts.iter().enumerate().filter(|(place, _)| !(from..from + chunk).contains(place)).map(|(_, part)| *part).collect();
            runs += 1;
            if still_fails(&with_parts(plan, &without)) {
                parts = without;
                shrunk = true;
            } else {
                from += chunk;
            }
        }
        // Single parts are tried again until none can go.
        if chunk == 1 && !shrunk {
            break;
        }
        chunk = if chunk == 1 { 1 } else { chunk.div_ceil(2) };
    }
    (with_parts(plan, &parts), runs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use twinshard_core::planted::Planted;

    #[test]
    fn what_matters_stays_and_nothing_else() {
        let plan = crate::swarm::plan(3, Planted::NONE);
        let wanted = [plan.operations[7].id, plan.operations[60].id];
        let fails = |plan: &Plan| wanted.iter().all(|id| plan.operations.iter().any(|operation| operation.id == *id));
        let (small, runs) = shrink(&plan, fails);
        assert_eq!(small.operations.iter().map(|operation| operation.id).collect::<Vec<_>>(), wanted);
        assert!(small.faults.is_empty());
        assert!(runs < 200, "{runs}");
    }
}
