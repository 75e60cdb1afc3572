//! The result's model card: where it comes from, what was done, what was measured.

use crate::model::Model;
use crate::record::Summary;

/// The text of `README.md` for the result of a run that started from `base`: `owner/name@commit` of the Hub,
/// or a folder.
pub(super) fn card(base: Option<&str>, from_hub: bool, model: &Model, summary: &Summary) -> String {
    let (name, commit) = match base.map(|b| b.rsplit_once('@').filter(|_| from_hub).unwrap_or((b, ""))) {
        // The path on somebody's machine is nobody else's business.
        Some((path, _)) if !from_hub => (path.rsplit(['/', '\\']).next().unwrap_or(path), ""),
        Some((id, commit)) => (id, commit),
        None => ("a model in memory", ""),
    };
    let mut text = "---\nlibrary_name: transformers\n".to_owned();
    if from_hub {
        text.push_str(&format!("base_model: {name}\n"));
    }
    text.push_str(&format!(
        "---\n\n# {name}, pruned\n\nMade by Upgrayedd {} from {name}",
        env!("CARGO_PKG_VERSION")
    ));
    if !commit.is_empty() {
        text.push_str(&format!(" as it was at commit `{commit}`"));
    }
    let (before, after) = (&summary.before, &summary.after);
    let heads = |heads: &[Vec<usize>]| heads.iter().map(Vec::len).sum::<usize>();
    text.push_str(&format!(
        ".\n\n| | before | after |\n|---|---|---|\n| held-out loss ({}) | {:.4} | {:.4} |\n| attention heads | {} | {} |\n| MLP channels | {} | {} |\n| parameters | {} | {} |\n",
        after.evaluation.protocol,
        before.evaluation.loss,
        after.evaluation.loss,
        heads(&before.heads),
        heads(&after.heads),
        before.channels.iter().sum::<usize>(),
        after.channels.iter().sum::<usize>(),
        before.cost.parameters,
        after.cost.parameters,
    ));
    if !model.units().is_full() {
        text.push_str("\nLoad it in transformers with `trust_remote_code=True`: its layers differ in their numbers of heads or channels.\n");
    }
    text
}
