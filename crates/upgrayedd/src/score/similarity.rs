//! How little a head repeats another of its layer. Of a similar pair the weaker goes, never both: once it is
//! gone, the other is compared with those that are left.

use super::context::ScoreContext;
use super::definition::Score;
use super::statistics::{Needs, Statistics};
use crate::Result;
use crate::units::{Scores, Site, Sites};

pub(super) static SCORE: Score = Score {
    name: "similarity",
    summary: "1 − mean cosine with the most similar head of its layer, of what both add to the residual stream; of a pair the weaker has it",
    shown_negated: false,
    units: Sites::of(Site::Head),
    needs: Needs::Cosines,
    compute,
};

fn compute(_: &ScoreContext<'_>, statistics: &Statistics) -> Result<Scores> {
    let layers =
        statistics.cosines.iter().zip(&statistics.powers).map(|(cosines, powers)| in_order(cosines, powers));
    Ok(Scores::of_heads(layers))
}

/// Takes the weaker of the most similar pair out until one head is left; a head's score is how similar its
/// pair was then.
fn in_order(cosines: &[f64], powers: &[f64]) -> Vec<f64> {
    let heads = powers.len();
    let mut remaining: Vec<usize> = (0..heads).collect();
    // The last one repeats nothing: no cosine is lower than −1.
    let mut scores = vec![2.0; heads];
    while remaining.len() > 1 {
        let pairs =
            remaining.iter().enumerate().flat_map(|(i, &a)| remaining[i + 1..].iter().map(move |&b| (a, b)));
        let Some((a, b)) = pairs.max_by(|&(a, b), &(c, d)| {
            cosines[a * heads + b].total_cmp(&cosines[c * heads + d]).then((c, d).cmp(&(a, b)))
        }) else {
            break;
        };
        let weaker = if powers[b] < powers[a] { b } else { a };
        scores[weaker] = 1.0 - cosines[a * heads + b];
        remaining.retain(|&h| h != weaker);
    }
    scores
}

#[cfg(test)]
mod tests {
    use super::in_order;

    #[test]
    fn of_a_similar_pair_only_the_weaker_scores_low() {
        // Heads 0 and 1 write nearly the same, 0 more softly; 2 is on its own.
        let cosines = [1.0, 0.9, 0.1, 0.9, 1.0, 0.2, 0.1, 0.2, 1.0];
        let scores = in_order(&cosines, &[1.0, 2.0, 0.5]);
        for (score, want) in scores.iter().zip([0.1, 2.0, 0.8]) {
            assert!((score - want).abs() < 1e-12, "{scores:?}");
        }
    }
}
