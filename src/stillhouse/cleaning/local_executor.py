"""datatrove's local executor without its logs and statistics, which would be printed."""

from datatrove.executor.local import LocalPipelineExecutor
from datatrove.utils.stats import PipelineStats


class LocalExecutor(LocalPipelineExecutor):
    """Runs the tasks in processes of this machine, or in this one where there is one worker."""

    def _run_for_rank(self, rank: int, local_rank: int = 0, node_rank: int = -1) -> PipelineStats:
        (task,) = self.pipeline
        assert callable(task)
        task(None, rank, self.world_size)
        return PipelineStats()
