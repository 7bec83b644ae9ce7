"""Environment of a Slurm step for Lightning: ranks and size as plain `srun` tells them.

Lightning's own environment reads the job's variables instead of the step's, refuses
`srun --ntasks=2`, and saves and requeues in a signal handler; all of this is overridden here.
"""

from lightning.pytorch.plugins.environments import SLURMEnvironment

from xray_lightning.errors import UserError
from xray_lightning.training.slurm import Step


class SlurmStepEnvironment(SLURMEnvironment):
    """Lightning's Slurm environment for the tasks of one `srun`.

    Attributes:
        local_size: tasks on each node.
        nodes: number of nodes.

    Raises:
        UserError: this process is no task of a step, or nodes have different numbers of tasks.
    """

    def __init__(self) -> None:
        super().__init__(auto_requeue=False)  # training.interruption stops all ranks in order
        step = Step.of()
        if step is None:
            raise UserError("this process is no task of srun; start it by `srun python train.py`")
        self._step = step
        counts = step.tasks_per_node
        if len(set(counts)) > 1:
            raise UserError(
                f"srun gave the nodes {', '.join(map(str, counts))} tasks: start equally many on "
                "each, with --ntasks-per-node"
            )
        self.local_size, self.nodes = counts[0], len(counts)

    @property
    def main_address(self) -> str:
        return self._step.address

    @property
    def main_port(self) -> int:
        return self._step.port

    def world_size(self) -> int:
        return self._step.size

    def global_rank(self) -> int:
        return self._step.rank

    def validate_settings(self, num_devices: int, num_nodes: int) -> None:
        """Do nothing: Lightning would compare the step's numbers with the job's variables."""

    @staticmethod
    def _validate_srun_used() -> None:
        """Do nothing: this class is instantiated in a step only, so srun was used."""

    @staticmethod
    def _validate_srun_variables() -> None:
        """Do nothing: Lightning demands --ntasks-per-node, but the step has the same numbers."""
