from benchmarks.machine import Machine, forward_flops


def test_the_arithmetic_of_a_forward_pass() -> None:
    minilm = {"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 6}
    linear = 6 * 2 * (4 * 384 * 384 + 2 * 384 * 1536)
    attention = 6 * 2 * 2 * 384 * 83
    assert forward_flops(minilm, [83]) == 83 * (linear + attention)
    assert forward_flops(minilm, [83, 83]) == 2 * forward_flops(minilm, [83])


def test_a_machine_says_what_it_lacks() -> None:
    machine = Machine("Some CPU", 2, ("avx2",), 0.5, 165.2, None)
    assert machine.sentence == ("2 × Some CPU (avx2), load 0.5; matrix products: fp32 165, bf16 only emulated GFLOP/s")
    assert "bf16 640" in Machine("Some CPU", 2, (), 0.5, 165.2, 640.0).sentence
