/*  libnanomsg's device: nn_device FRONT URL BACK URL, where FRONT and BACK are protocols in small letters.
    It dials both; a URL that begins with '@' is listened on.  */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <nanomsg/bus.h>
#include <nanomsg/nn.h>
#include <nanomsg/pair.h>
#include <nanomsg/pipeline.h>
#include <nanomsg/pubsub.h>
#include <nanomsg/reqrep.h>
#include <nanomsg/survey.h>

static const struct {
    const char *name;
    int number;
} protocols[] = {
    {"req", NN_REQ},           {"rep", NN_REP},   {"pub", NN_PUB},   {"sub", NN_SUB}, {"push", NN_PUSH},
    {"pull", NN_PULL},         {"bus", NN_BUS},   {"pair", NN_PAIR}, {"surveyor", NN_SURVEYOR},
    {"respondent", NN_RESPONDENT},
};

static void check (int result, const char *what)
{
    if (result >= 0)
        return;
    fprintf (stderr, "%s: %s\n", what, nn_strerror (nn_errno ()));
    exit (1);
}

static int open_end (const char *name, const char *url)
{
    size_t i;
    int socket;

    for (i = 0; i < sizeof (protocols) / sizeof (protocols[0]); i++) {
        if (strcmp (protocols[i].name, name) != 0)
            continue;
        socket = nn_socket (AF_SP_RAW, protocols[i].number);
        check (socket, "nn_socket");
        if (protocols[i].number == NN_SUB) /*  it filters, though it is raw  */
            check (nn_setsockopt (socket, NN_SUB, NN_SUB_SUBSCRIBE, "", 0), "nn_setsockopt");
        if (url[0] == '@')
            check (nn_bind (socket, url + 1), url);
        else
            check (nn_connect (socket, url), url);
        return socket;
    }
    fprintf (stderr, "unknown protocol: %s\n", name);
    exit (1);
}

int main (int argc, char **argv)
{
    if (argc != 5) {
        fprintf (stderr, "usage: %s FRONT URL BACK URL\n", argv[0]);
        return 2;
    }
    check (nn_device (open_end (argv[1], argv[2]), open_end (argv[3], argv[4])), "nn_device");
    return 0;
}
