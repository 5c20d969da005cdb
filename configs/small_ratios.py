"""One small LCLM for four ratios: the same text in 32, 16, 8 or 4 latents."""

from configs.small import prepare as prepare
from configs.small import tower, trained
from lclm_jax.config import CompressionConfig, Config, DataConfig, Group, MeshConfig, ModelConfig, RunConfig, StageConfig, Stream
from lclm_jax.evaluate import Tests

EVALUATED = Tests(("docs", "jumbles"), lengths=((32, 32), (64, 64)), continued=(), questions=None)
STREAMS = (
    Stream("reconstruction", "jumbles_short", 0.2),
    Stream("reconstruction", "docs", 0.4),
    Stream("reconstruction", "jumbles", 0.4),
)


def config() -> Config:
    return Config(
        model=ModelConfig(
            encoder=tower(2),
            decoder=tower(3),
            compression=CompressionConfig(ratio=4, ratios=(2, 8, 16), window=64, pooling="mean"),
            dtype="float32",
            remat="none",
        ),
        data=DataConfig(
            directory="runs/small/data",
            rows=8,
            positions=256,
            windows=3,
            lookahead=64,
            reconstruction=(32, 64),
            requests=1,
            shortest_segment=8,
        ),
        stages=(
            StageConfig(
                "language",
                steps=500,
                groups=(Group("decoder/.*", 2.5e-3, decay=0.0), Group("(adapter|encoder)/.*", None)),
                streams=STREAMS,
                warmup=50,
                final_rate=2.5e-3,
                compress=False,
            ),
            StageConfig(
                "joint",
                steps=3200,
                groups=trained(2e-3),
                streams=STREAMS,
                warmup=50,
                final_rate=2e-3,
                encoder_from_decoder=True,
                windows=4,
            ),
            StageConfig("anneal", steps=800, groups=trained(2e-3), streams=STREAMS, warmup=50, final_rate=1e-5, windows=4),
        ),
        mesh=MeshConfig(data=-1, fsdp=1),
        run=RunConfig(directory="runs/small_ratios", save_every=200, loss_chunk=1024),
    )
