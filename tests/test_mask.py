"""Where the figure is: each road to a mask, what is left out, soft edges free of the ground's colour, and refusals."""

from __future__ import annotations

import json
import time

import cv2
import numpy as np
import pytest
from mascots import BALL, CARTON, CHILD, MASCOTS, PAPER, busy_ground

from animx.canvas import Canvas
from animx.errors import InputError, NoFigureError
from animx.pose.sequence import PoseSequence
from animx.pose.skeleton import JOINTS
from animx.puppet import segment, surplus
from animx.puppet.mask import Mask, cut_out, find_mask
from animx.puppet.matting import soften


def iou(a, b):
    a, b = np.asarray(a) > 0.5, np.asarray(b) > 0.5
    return (a & b).sum() / max(1, (a | b).sum())


def no_net(rgb):
    return None


def net_of(truth, blur=0.02, grow=0):
    """A person net that knows the picture's figure only roughly; finds it in any view by its orange skin."""

    def net(rgb):
        figure = np.abs(rgb.astype(int) - (235, 150, 70)).max(2) < 40
        if grow:
            figure = cv2.dilate(figure.astype(np.uint8), np.ones((grow, grow), np.uint8)) > 0
        soft = cv2.GaussianBlur(figure.astype(np.float32), (0, 0), max(1.0, blur * max(rgb.shape)))
        return np.clip(soft * 1.2, 0, 1).astype(np.float32)

    return net


def with_pose(mascot):
    points, scores = np.zeros((1, 1, JOINTS, 2), np.float32), np.zeros((1, 1, JOINTS), np.float32)
    for joint, point in mascot.joints.items():
        points[0, 0, joint], scores[0, 0, joint] = point, 1
    return PoseSequence(points, scores, Canvas(*mascot.size))


# --- given, transparent, refused ---------------------------------------------------------------------------------


def test_a_given_mask_is_taken_as_it_is():
    given = np.zeros((60, 80), np.float32)
    given[10:50, 20:60] = 0.7
    found = find_mask(busy_ground(80, 60), mask=given)
    assert (found.method, found.notes) == ("file", ())
    assert (found.alpha == given).all()


@pytest.mark.parametrize("given", [np.ones((60, 70)), np.full((60, 80), np.nan), np.full((60, 80), 200.0)])
def test_a_given_mask_that_does_not_fit_is_refused(given):
    with pytest.raises(InputError, match="mask"):
        find_mask(busy_ground(80, 60), mask=given)


def test_a_transparent_picture_brings_its_own_mask():
    alpha = (BALL.mask * 255).astype(np.uint8)
    found = find_mask(np.dstack([busy_ground(*BALL.size), alpha]), net=no_net)
    assert found.method == "alpha"
    assert (found.alpha == alpha / np.float32(255)).all()


def test_an_opaque_alpha_says_nothing():
    opaque = np.dstack([BALL.picture(), np.full(BALL.size[::-1], 255, np.uint8)])
    assert find_mask(opaque, net=no_net).method == "flat ground"


def test_rounded_corners_are_no_figure_mask():
    alpha = np.full(BALL.size[::-1], 255, np.uint8)
    alpha[:12, :12] = 0
    found = find_mask(np.dstack([BALL.picture(), alpha]), net=no_net)
    assert found.method == "flat ground"
    assert any("transparent" in note for note in found.notes)


@pytest.mark.parametrize(
    "picture",
    [np.full((200, 200, 3), 255, np.uint8), np.zeros((1, 1, 3), np.uint8), np.zeros((1, 1, 4), np.uint8)],
    ids=["blank", "one pixel", "one transparent pixel"],
)
def test_no_figure_is_said(picture):
    with pytest.raises(NoFigureError):
        find_mask(picture, net=no_net)


def test_a_figure_under_three_per_cent_is_no_figure():
    picture = np.full((400, 400, 3), PAPER, np.uint8)
    cv2.circle(picture, (200, 200), 20, (200, 40, 40), -1)
    with pytest.raises(NoFigureError, match=r"0\.8%.*--mask"):
        find_mask(picture, net=no_net)


def test_a_picture_of_one_colour_is_refused_at_once():
    """GrabCut would take minutes over it."""
    start = time.process_time()
    with pytest.raises(NoFigureError):
        find_mask(np.full((600, 400, 3), 200, np.uint8), net=no_net)
    plain = np.full((400, 300, 3), 200, np.uint8)
    assert (segment.grow(plain, np.full((400, 300), 0.6, np.float32)) > 0).all()
    assert time.process_time() - start < 5


def test_an_empty_transparent_picture_has_no_figure():
    with pytest.raises(NoFigureError):
        find_mask(np.zeros((64, 64, 4), np.uint8), net=no_net)


def test_a_net_that_finds_nobody_in_a_busy_picture_means_no_figure():
    with pytest.raises(NoFigureError, match="--mask"):
        find_mask(busy_ground(300, 300), net=lambda rgb: np.zeros(rgb.shape[:2], np.float32))


# --- flat grounds ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mascot", MASCOTS, ids=lambda m: m.name)
def test_a_drawing_on_paper_is_found_without_a_net(mascot):
    rng = np.random.default_rng(0)
    paper = np.clip(np.array(PAPER) + rng.normal(0, 1.5, (*mascot.size[::-1], 1)), 0, 255).astype(np.uint8)
    found = find_mask(mascot.picture(paper), net=no_net)
    assert found.method == "flat ground"
    assert iou(found.alpha, mascot.mask) > 0.97


def test_an_outline_drawing_with_a_gap_keeps_its_body():
    mask = CHILD.mask
    picture = np.full((*mask.shape, 3), PAPER, np.uint8)
    line = mask & ~(cv2.erode(mask.astype(np.uint8), np.ones((7, 7), np.uint8)) > 0)
    picture[line] = (40, 40, 120)
    picture[320:323, 150:180] = PAPER  # the pen was lifted
    assert iou(find_mask(picture, net=no_net).alpha, mask) > 0.95


def test_an_enclosed_patch_of_ground_is_taken_out_when_the_net_does_not_claim_it():
    ring = np.full((400, 400, 3), (250, 250, 250), np.uint8)
    cv2.circle(ring, (200, 200), 140, (200, 60, 60), -1)
    cv2.circle(ring, (200, 200), 45, (250, 250, 250), -1)

    def claims(share):
        def net(rgb):
            red = rgb[..., 1].astype(int) < 150
            filled = cv2.morphologyEx(red.astype(np.uint8), cv2.MORPH_CLOSE, segment.disc(rgb.shape[0] // 7)) > 0
            return np.where(red, 1.0, np.where(filled, share, 0.0)).astype(np.float32)

        return net

    assert find_mask(ring, net=claims(0.1)).alpha[200, 200] < 0.05
    assert find_mask(ring, net=claims(1.0)).alpha[200, 200] > 0.95


def test_a_bay_with_a_narrow_mouth_is_ground():
    """As between locks of hair: ink nearly closes it, but it has the ground's very colour."""
    picture = np.full((400, 400, 3), (250, 245, 235), np.uint8)
    cv2.circle(picture, (200, 200), 140, (200, 60, 60), -1)
    cv2.circle(picture, (200, 120), 40, (250, 245, 235), -1)
    cv2.rectangle(picture, (197, 40), (203, 100), (250, 245, 235), -1)
    alpha = find_mask(picture, net=no_net).alpha
    assert alpha[120, 200] < 0.05
    assert alpha[250, 200] == 1


# --- shaded grounds ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mascot", [CARTON, CHILD], ids=lambda m: m.name)
def test_colours_sharpen_a_rough_net(mascot):
    net = net_of(mascot, blur=0.02, grow=9)
    picture = mascot.picture(busy_ground(*mascot.size))
    found = find_mask(picture, net=net)
    assert found.method == "net + grabcut"
    assert iou(found.alpha, mascot.mask) > max(0.92, 0.07 + iou(net(picture), mascot.mask))


def test_joints_replace_a_net():
    picture = CHILD.picture(busy_ground(*CHILD.size))
    found = find_mask(picture, joints=with_pose(CHILD), net=no_net)
    assert found.method == "joints + grabcut"
    assert iou(found.alpha, CHILD.mask) > 0.85


def test_without_net_and_joints_the_middle_is_guessed_and_said():
    found = find_mask(CHILD.picture(busy_ground(*CHILD.size)), net=no_net)
    assert found.method == "grabcut"
    assert any("offline" in note for note in found.notes)
    assert iou(found.alpha, CHILD.mask) > 0.8


def test_joints_on_another_canvas_are_refused():
    with pytest.raises(InputError, match="canvas"):
        find_mask(CHILD.picture(), joints=with_pose(BALL), net=no_net)


def test_views_outvote_a_wall_that_one_view_takes_in():
    calls = []

    def net(rgb):
        calls.append(1)
        answer = net_of(CHILD)(rgb)
        if len(calls) == 1:
            answer[:, : rgb.shape[1] // 4] = 1
        return answer

    picture = CHILD.picture(busy_ground(*CHILD.size))
    prior = segment.person_prior(picture, net)
    assert len(calls) == 6
    beside = cv2.dilate(CHILD.mask.astype(np.uint8), segment.disc(25)) == 0
    assert prior[beside].max() < 0.5


def test_the_same_picture_gives_the_same_bytes():
    picture = CHILD.picture(busy_ground(*CHILD.size))
    a, b = (find_mask(picture, net=net_of(CHILD)).alpha.tobytes() for _ in range(2))
    assert a == b


# --- surplus -----------------------------------------------------------------------------------------------------


def shaded(mascot):
    """The mascot with a lightness pattern, so that turning it over can be told."""
    rgb = mascot.picture(busy_ground(*mascot.size)).astype(np.float32)
    rows = np.arange(mascot.size[1])[:, None, None]
    rgb[mascot.mask] = (rgb * (0.75 + 0.25 * np.sin(rows / 17)))[mascot.mask]
    return rgb.astype(np.uint8)


def reflected(mascot, line):
    """Picture, figure and prior with a darker reflection below row `line`."""
    rgb, mask = shaded(mascot), mascot.mask.copy()
    mask[line:] = False
    depth = min(line, mask.shape[0] - line)
    below = mask[line - depth : line][::-1]
    rgb[line : line + depth][below] = (rgb[line - depth : line][::-1][below] * 0.7).astype(np.uint8)
    both = mask.copy()
    both[line : line + depth] |= below
    prior = mask.astype(np.float32)
    prior[line : line + depth][below] = 0.6
    return rgb, mask, both, prior


def test_a_reflection_under_the_feet_is_left_out():
    rgb, mask, both, prior = reflected(CARTON, 555)
    assert iou(both, mask) < 0.95
    kept, notes = surplus.without_surplus(rgb, both, prior, np.zeros((0, 2)))
    assert iou(kept, mask) > 0.98
    assert any("reflection" in note for note in notes)


def test_feet_are_no_reflection():
    for mascot in MASCOTS:
        prior = mascot.mask.astype(np.float32)
        assert surplus.reflection_line(shaded(mascot), mascot.mask, prior, np.zeros((0, 2))) is None


def test_joints_in_the_lower_part_disprove_a_reflection():
    rgb, _, both, prior = reflected(CARTON, 555)
    joint_below = np.array([[160.0, 600.0]])
    assert surplus.reflection_line(rgb, both, prior, joint_below) is None


def test_a_detached_piece_is_left_out_unless_it_holds_a_joint():
    both = CHILD.mask.copy()
    cv2.circle(piece := np.zeros(both.shape, np.uint8), (60, 540), 35, 1, -1)
    both |= piece > 0
    rgb, prior = shaded(CHILD), both.astype(np.float32)
    kept, notes = surplus.without_surplus(rgb, both, prior, np.zeros((0, 2)))
    assert iou(kept, CHILD.mask) > 0.99
    assert notes
    kept, _ = surplus.without_surplus(rgb, both, prior, np.array([[60.0, 540.0]]))
    assert iou(kept, both) > 0.99


def test_a_piece_of_street_on_a_thin_neck_is_left_out():
    rgb, both = shaded(CHILD), CHILD.mask.copy()
    prior = both.astype(np.float32)
    street = np.zeros(both.shape, np.uint8)
    cv2.rectangle(street, (385, 420), (460, 520), 1, -1)
    cv2.line(street, (300, 350), (390, 430), 1, 4)
    rgb[street > 0] = (20, 60, 140)
    prior[(street > 0) & ~both] = 0.3
    both |= street > 0
    kept, notes = surplus.without_surplus(rgb, both, prior, np.zeros((0, 2)))
    assert not kept[470, 420]
    assert iou(kept, CHILD.mask) > 0.97
    assert any("neck" in note for note in notes)


def test_a_hand_the_net_doubts_stays_when_its_colour_is_the_figures():
    rgb, prior = shaded(CARTON), CARTON.mask.astype(np.float32)
    prior[:, :115] *= 0.25
    kept, _ = surplus.without_surplus(rgb, CARTON.mask, prior, np.zeros((0, 2)))
    assert iou(kept, CARTON.mask) > 0.99


# --- soft edges --------------------------------------------------------------------------------------------------


def soft_disc(ground=(40, 160, 60), colour=(210, 60, 50), size=240, radius=70):
    y, x = np.mgrid[0:size, 0:size] + 0.5
    alpha = np.clip(radius - np.hypot(x - size / 2, y - size / 2) + 0.5, 0, 1).astype(np.float32)
    rgb = alpha[..., None] * np.array(colour) + (1 - alpha[..., None]) * np.array(ground)
    return rgb.round().astype(np.uint8), alpha


def test_the_edge_is_soft_and_right_to_a_twentieth():
    rgb, truth = soft_disc()
    alpha = soften(rgb, np.where(truth > 0.5, 1.0, -1.0).astype(np.float32))
    edge = (truth > 0) & (truth < 1)
    assert np.abs(alpha - truth)[edge].mean() < 0.05
    assert np.abs(alpha - truth)[~edge].mean() < 0.002


def test_an_outline_that_is_a_pixel_off_is_drawn_to_the_edge():
    rgb, truth = soft_disc()
    for shift in (-1, 1):
        score = np.where(np.roll(truth, shift, 1) > 0.5, 1.0, -1.0).astype(np.float32)
        alpha = soften(rgb, score)
        off = np.abs(np.roll(truth, shift, 1) - truth).sum()
        assert np.abs(alpha - truth).sum() < 0.5 * off


def test_the_cut_out_brings_no_halo():
    """On another ground the edge shows the figure's colour only, not the old ground's green."""
    rgb, truth = soft_disc()
    premultiplied = cut_out(rgb, truth)
    new = premultiplied[..., :3] + (1 - premultiplied[..., 3:])  # on white
    wanted = truth[..., None] * (np.array([210, 60, 50]) / 255) + (1 - truth[..., None])
    naive = truth[..., None] * (rgb / 255) + (1 - truth[..., None])
    assert np.abs(new - wanted).max() < 0.04 < np.abs(naive - wanted).max()


def test_the_cut_out_is_the_picture_itself_inside_and_premultiplied():
    rgb, truth = soft_disc()
    out = cut_out(np.dstack([rgb, np.full(truth.shape, 255, np.uint8)]), truth)
    solid = truth == 1
    assert np.abs(out[solid, :3] - rgb[solid] / 255).max() < 1e-6
    assert (out[..., :3] <= out[..., 3:] + 1e-6).all()
    assert (out[truth == 0] == 0).all()
    assert out.dtype == np.float32


def test_a_mask_knows_its_share():
    alpha = np.zeros((10, 10), np.float32)
    alpha[:5] = 1
    assert Mask(alpha, "file").share == 0.5


# --- the shared pictures -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["drawing_char1", "drawing_char3"])
def test_the_drawings_reach_the_bar(shared, name):
    """IoU with their own masks at least 0.9, without a net."""
    folder = shared / "data" / name
    picture = cv2.cvtColor(cv2.imread(str(folder / "texture.png")), cv2.COLOR_BGR2RGB)
    truth = cv2.imread(str(folder / "mask.png"), cv2.IMREAD_GRAYSCALE) > 127
    assert iou(find_mask(picture, net=no_net).alpha, truth) >= 0.9


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ref_boar.jpg", "ref_woman.jpg", "ref_juice.png"])
def test_photographic_pictures_reach_the_bar(shared, root, name):
    """Against outlines drawn by hand: area at most 1.15 times, recall at least .95."""
    from animx.pose.mediapipe import MediapipeBackend

    if (missing := MediapipeBackend.available()) is not None:
        pytest.skip(missing)
    outline = json.loads((root / "tests" / "data" / "outlines.json").read_text())["images"][name]
    picture = cv2.cvtColor(cv2.imread(str(shared / "data" / name)), cv2.COLOR_BGR2RGB)
    assert outline["size"] == [picture.shape[1], picture.shape[0]]
    truth = np.zeros(picture.shape[:2], np.uint8)
    for polygon in outline["add"]:
        cv2.fillPoly(truth, [np.array(polygon, np.int32)], 1)
    for polygon in outline["cut"]:
        cv2.fillPoly(truth, [np.array(polygon, np.int32)], 0)
    found = find_mask(picture).alpha > 0.5
    assert found.sum() <= 1.15 * truth.sum()
    assert (found & (truth > 0)).sum() >= 0.95 * truth.sum()


@pytest.mark.parametrize("name", ["blank.png", "one_pixel.png"])
def test_bad_pictures_hold_no_figure(shared, name):
    picture = cv2.cvtColor(cv2.imread(str(shared / "data" / "bad" / name)), cv2.COLOR_BGR2RGB)
    with pytest.raises(NoFigureError):
        find_mask(picture, net=no_net)
