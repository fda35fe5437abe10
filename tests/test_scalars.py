"""How the numbers of training are said in a line."""

from __future__ import annotations

from flexvae_cli.engine.scalars import line, scalar, short_line, terms_of

VALUES = {
    "loss": 0.051522,
    "reconstruction": 0.0025761,
    "kld": 1904.2,
    "adversarial": 0.31,
    "images_per_second": 139.87,
    "data_wait": 0.021,
    "memory_bytes": 1.204e9,
    "lr": 1.14e-4,
    "gradient_norm": 0.582,
    "discriminator": 0.97,
    "adversarial_weight": 12.0,
    "skipped": 0.0,
}


def test_numbers_are_grouped_and_unknown_ones_are_terms():
    assert line(VALUES) == (
        "loss 0.05152 (reconstruction 0.002576, kld 1904, adversarial 0.31)  gradient 0.582  lr 1.14e-04  "
        "adversarial weight 12  discriminator 0.97  140 images/s  data wait 2 %  1.20 GB"
    )


def test_what_matters_most_comes_first_where_there_is_little_room():
    assert short_line(VALUES).startswith("loss 0.05152  140 images/s  lr 1.14e-04  data wait 2 %  1.20 GB  recon")
    assert "skipped" not in short_line(VALUES)
    assert "skipped 3" in short_line(VALUES | {"skipped": 3.0})


def test_where_all_updates_were_skipped_there_is_no_loss_to_tell():
    assert line({"skipped": 5.0, "images_per_second": 80.0}) == "skipped 5  80 images/s"
    assert short_line({"skipped": 5.0}) == "skipped 5"


def test_the_ssim_of_training_is_a_term_and_that_of_validation_a_measure():
    values = {"loss": 1.0, "ssim": 0.25}
    assert line(values) == "loss 1.00000 (ssim 0.25)"
    assert line(values | {"psnr": 28.2}, "validation") == "loss 1.00000  PSNR 28.20 dB  SSIM 0.2500"
    assert terms_of(values) == ["ssim"]
    assert terms_of(values, "validation") == []


def test_names_of_terms_may_hold_braces():
    assert scalar("{a}").said(0.5) == "{a} 0.5"
