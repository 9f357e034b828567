"""The glossary: every metric a run logs, with a one-line meaning. The README's table is rendered from it."""

from __future__ import annotations

from collections.abc import Iterable

from dsob_pl.errors import nearest

GLOSSARY: dict[str, str] = {
    "train/episode_return": "undiscounted return of the last finished training episode, exploration noise included",
    "train/episode_length": "environment steps of the last finished training episode",
    "train/dropped_episodes": "training episodes dropped so far because the environment failed (data.restart_budget)",
    "critic/loss": "divergence between predicted and target samples, mean over the batch, summed over critics",
    "critic/value": "mean predicted return, in units of reward",
    "critic/target": "mean target return, in units of reward",
    "critic/return_spread": "standard deviation of the predicted return at a state-action pair, in units of reward",
    "critic/gradient_spread": "standard deviation of the predicted return gradient there, all components together",
    "critic/target_gradient_norm": "mean norm of the gradient part of the targets, in units of reward",
    "critic/range_excess": "how far the farthest mean return (target, or predicted where targets are bounded) lies "
    "outside of the range that rewards and discount allow, in widths of it; negative below",
    "critic/clipped_fraction": "fraction of target samples that the bounds on possible returns changed",
    "critic/gradient_weight": "what gradients weigh in the loss where that is limited (model.gradient_rms_limit)",
    "critic/pessimism": "weight of the targets' pessimism where it adapts (AdaptivePessimism); "
    "1 is the lower mean, below 0 optimism",
    "critic/recent_pit": "mean rank of recent training returns in their predicted law; above 0.5 that lies too low",
    "critic/recent_error": "net over total error of the mean predicted for them, in [-1, 1]; above 0 that lies too low",
    "critic/grad_norm": "global norm of the critics' parameter gradient before clipping",
    "policy/loss": "minus the predicted return of the policy's own actions, its mean or that of model.risk",
    "policy/grad_norm": "global norm of the policy's parameter gradient before clipping",
    "world_model/loss": "training loss of the world model (negative ELBO plus the termination loss)",
    "world_model/kl": "KL divergence of the encoder from the learned prior, in nats",
    "world_model/reconstruction": "negative log-likelihood of next state and reward under the decoder, in nats",
    "world_model/termination_loss": "binary cross-entropy of the predicted termination, in nats",
    "world_model/sigma": "mean learned standard deviation of the decoder, in normalised units",
    "world_model/grad_norm": "global norm of the world model's parameter gradient before clipping",
    "world_model/spread": "spread of sampled next states and rewards over that of the real ones; 1 is calibrated",
    "world_model/heldout_log_likelihood": "held-out log-likelihood in nats per component of (s', r), or a lower bound",
    "world_model/open_loop_error": "root mean square error after 10 imagined steps, in units of each component's std",
    "bellman/gamma_kappa": "discount times max(1, largest norm of K) in a batch; below 1 the operator contracts",
    "bellman/gamma_kappa_p90": "gamma*kappa, 0.9 quantile over the batch",
    "bellman/gamma_kappa_median": "gamma*kappa, median over the batch",
    "bellman/jacobian_penalty": "soft bound's mean square excess of the norm of K, before its weight",
    "truth/return_error": "root mean square error of the mean return, in true standard deviations of the return",
    "truth/return_spread": "learned over true standard deviation of the return; 1 is calibrated",
    "truth/gradient_error": "relative root mean square error of the mean action gradient of the return",
    "truth/gradient_cosine": "cosine of learned and true mean action gradient, averaged over state-action pairs",
    "truth/gradient_spread": "learned over true standard deviation of the action gradient; 1 is calibrated",
    "truth/conditional_gradient_error": "relative error of E[dG/da] given the decile of G, which is what G identifies",
    "truth/cvar_10_gradient_error": "relative error of the gradient of CVaR at 0.1: mean dG/da in G's lowest tenth",
    "truth/cvar_10_gradient_cosine": "cosine of learned and true gradient of CVaR at 0.1",
    "truth/cvar_25_gradient_error": "relative error of the gradient of CVaR at 0.25",
    "truth/cvar_25_gradient_cosine": "cosine of learned and true gradient of CVaR at 0.25",
    "truth/energy_distance": "energy distance of the joint law of (G, dG/da) to the true one, components scaled",
    "truth/state_gradient_error": "relative root mean square error of the mean state gradient of the return",
    "truth/state_gradient_cosine": "cosine of learned and true mean state gradient",
    "truth/state_gradient_spread": "learned over true standard deviation of the state gradient; 1 is calibrated",
    "truth/state_conditional_gradient_error": "relative error of E[dG/ds] given the decile of G",
    "truth/state_energy_distance": "energy distance of the joint law of (G, dG/ds, dG/da) to the true one",
    "world_model/jacobian_error": "relative error of the model's mean Jacobian of (s', r), where dynamics are known",
    "world_model/energy_distance": "energy distance of the model's (s', r) to the true law, where dynamics are known",
    "eval/return_mean": "mean undiscounted return of the evaluation episodes (no exploration noise, fixed seeds)",
    "eval/return_std": "standard deviation of the return over the evaluation episodes",
    "eval/return_min": "smallest return of the evaluation episodes",
    "eval/return_max": "largest return of the evaluation episodes",
    "eval/length_mean": "mean length of the evaluation episodes, in environment steps",
    "eval/length_std": "standard deviation of the length over the evaluation episodes",
    "eval/length_min": "shortest evaluation episode, in environment steps",
    "eval/length_max": "longest evaluation episode, in environment steps",
    "eval/value": "mean return that the critics predict at the evaluation episodes' first states",
    "eval/discounted_return": "mean discounted return that those episodes realised; compare with eval/value",
    "eval/normalized_score": "eval/discounted_return between staying put (0) and the optimum (1)",
    "eval/risk": "model.risk of the evaluation episodes' discounted returns, where that is not the mean",
    "eval/coverage_50": "fraction of realised returns-to-go within the central 50 % of their predicted law",
    "eval/coverage_80": "fraction of realised returns-to-go within the central 80 % of their predicted law",
    "eval/coverage_95": "fraction of realised returns-to-go within the central 95 % of their predicted law",
    "eval/pit_mean": "mean place of a realised return-to-go within its predicted law; 0.5 is calibrated, above it the "
    "critics predict too little",
    "eval/crps": "mean continuous ranked probability score of the predicted laws, in units of reward",
    "eval_clean/return_mean": "mean return of as many episodes with the same seeds, without the noise of data.noise",
    "eval_clean/return_std": "standard deviation of the return over those episodes without noise",
    "seeds/running": "parent run of many seeds: number of seeds still running",
    "seeds/episode_return_mean": "parent run of many seeds: mean of the seeds' latest train/episode_return",
    "seeds/episode_return_std": "parent run of many seeds: standard deviation over seeds of train/episode_return",
    "seeds/return_mean": "parent run of many seeds: mean of the seeds' latest eval/return_mean",
    "seeds/return_std": "parent run of many seeds: standard deviation over seeds of eval/return_mean",
    "seeds/normalized_score_mean": "parent run of many seeds: mean of the seeds' latest eval/normalized_score",
    "seeds/normalized_score_std": "parent run of many seeds: standard deviation over seeds of eval/normalized_score",
    "speed/updates_per_second": "critic updates per second since the previous report",
    "speed/steps_per_second": "environment steps per second since the previous report",
}

# Those by which the methods of a suite are compared.
SCORES = (
    "eval/normalized_score",
    "eval/return_mean",
    "eval/discounted_return",
    "eval/value",
    "eval_clean/return_mean",
)


def unknown_metrics(names: Iterable[str]) -> list[str]:
    """One line for each of ``names`` that the glossary lacks, with the nearest name it has."""
    return [f"'{name}' is not in the glossary{nearest(name, GLOSSARY)}" for name in names if name not in GLOSSARY]


def glossary_table() -> str:
    """The glossary as a Markdown table with the columns metric and meaning."""
    rows = [f"| `{name}` | {meaning} |" for name, meaning in GLOSSARY.items()]
    return "\n".join(["| metric | meaning |", "|---|---|", *rows])
